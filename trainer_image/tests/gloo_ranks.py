"""A few ranks for tests of what is collective: processes that stay, and call a function together when they are told to.

Without Ray, and forked from one process that has loaded torch, since that is what takes time. A function must be
importable by its module's name. It gets its place and a store of its own to meet the others in; what it returns must be
picklable.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from forks import Forks

_forks = Forks("rank_modules")

DEADLINE_S = 300.0
"""For one call, and for starting: on a busy machine one rank may be far behind the other."""


@dataclass(frozen=True)
class Place:
    """Which rank a function runs as, and how it finds the others."""

    rank: int
    world: int
    file: str

    def store(self) -> Any:
        """Where the ranks of this call meet."""
        from torch.distributed import FileStore

        return FileStore(self.file, self.world)


class GlooRanks:
    """`world` processes; one that fails ends them all, since the others would wait for it."""

    def __init__(self, world: int, folder: Path) -> None:
        self.world = world
        self._folder = folder
        self._calls = 0
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What `function(place, *args)` returns on each rank."""
        self._start()
        self._calls += 1
        for pipe in self._pipes:
            pipe.send((self._calls, function, args))
        return self._answers(function.__name__)

    def close(self) -> None:
        """End the processes; the next call starts others."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _answers(self, what: str) -> list[Any]:
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + DEADLINE_S
        try:
            while len(answers) < self.world:
                waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
                ready = wait(waiting, deadline - time.monotonic())
                assert ready, f"{what}: ranks {sorted(set(range(self.world)) - set(answers))} are silent"
                for pipe in ready:
                    assert isinstance(pipe, Connection)
                    ok, answer = pipe.recv()
                    assert ok, answer
                    answers[self._pipes.index(pipe)] = answer
        except BaseException:
            self.close()
            raise
        return [answers[rank] for rank in range(self.world)]

    def _start(self) -> None:
        if self._processes:
            return
        for rank in range(self.world):
            ours, theirs = Pipe()
            self._processes.append(_forks.start(_serve, rank, self.world, str(self._folder), theirs))
            theirs.close()
            self._pipes.append(ours)
        self._answers("start")


def _serve(rank: int, world: int, folder: str, pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
    pipe.send((True, None))
    while True:
        try:
            number, function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(Place(rank, world, f"{folder}/{number}"), *args)))
        except BaseException:
            pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))
