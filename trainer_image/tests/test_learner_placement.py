"""Ranks are numbered by machine: those that share rows of tokens are on one where it holds them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from deepcoder_trainer.learner.group import Deadlines, RayLearner
from deepcoder_trainer.learner.rank_settings import Rendezvous


class Method:
    """An actor's method, called as Ray's are."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *args: Any) -> Awaitable[Any]:
        async def answer() -> Any:
            return self._function(*args)

        return answer()


class Actor:
    """A rank on a machine, that notes how it was started."""

    def __init__(self, machine: str) -> None:
        self.started: tuple[int, Rendezvous | None] | None = None
        self.machine = Method(lambda: machine)
        self.listen = Method(lambda: Rendezvous(machine, 1))
        self.start = Method(self._start)

    def _start(self, rank: int, rendezvous: Rendezvous | None) -> int:
        self.started = (rank, rendezvous)
        return 1


async def test_neighbours_by_number_are_so_by_machine(make_recipe: Callable) -> None:
    actors = [Actor(machine) for machine in ("b", "a", "b", "a")]
    await RayLearner(actors, make_recipe(), 64, Deadlines()).start()
    assert [a.started and a.started[0] for a in actors] == [2, 0, 3, 1]
    assert {a.started and a.started[1] for a in actors} == {Rendezvous("a", 1)}


async def test_a_rank_alone_meets_nobody(make_recipe: Callable) -> None:
    actor = Actor("a")
    await RayLearner([actor], make_recipe(), 64, Deadlines()).start()
    assert actor.started == (0, None)
