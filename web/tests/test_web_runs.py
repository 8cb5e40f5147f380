"""The runs in memory: what goes while nobody watches is gone, and whoever waits is told what has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from web_fakes import object_of, run_of

from deepcoder_client.connection import Keep, Object
from deepcoder_client.errors import Forbidden, Unreachable
from deepcoder_client.permissions import Right
from deepcoder_web import runs as module
from deepcoder_web.runs import EVERYTHING, RunKey, Runs, Unreadable

Round = tuple[list[Object], list[tuple[str, Object]]]


def at(name: str, version: str, uid: str | None = None) -> Object:
    found = object_of(name, version=version)
    if uid:
        found["metadata"]["uid"] = uid
    return found


class Server:
    """Lists and watches in the order given; a watch ends with an error, as one that broke."""

    def __init__(self, *rounds: Round) -> None:
        self.rounds = list(rounds)
        self.changes: list[tuple[str, Object]] = []

    def raw_list(self, namespace: str | None, *, all_namespaces: bool, keep: Keep) -> list[Object]:
        if namespace == "gone":
            raise Forbidden(Right("list", "deepcoderruns", "deepcoder.dev", "gone"))
        if not self.rounds:
            raise Unreachable("it is away")
        listed, self.changes = self.rounds.pop(0)
        return [keep(each) for each in listed]

    def raw_watch(self, *_: Any, keep: Keep, **__: Any) -> Iterator[tuple[str, Object]]:
        yield from ((kind, keep(run)) for kind, run in self.changes)
        raise Unreachable("the watch broke")


async def watching(*rounds: Round, monkeypatch: Any, namespaces: tuple[str, ...] = ()) -> Runs:
    """After all rounds."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    server: Any = Server(*rounds)
    runs = Runs(server, namespaces)
    runs.start()
    async with asyncio.timeout(60):
        while server.rounds or "it is away" not in str(runs._problems):
            await asyncio.sleep(0.01)
    runs.stop()
    return runs


async def test_a_run_that_went_while_the_watch_was_broken_is_gone(monkeypatch: Any) -> None:
    first = [object_of("a"), object_of("b")]
    runs = await watching((first, []), ([object_of("b")], []), monkeypatch=monkeypatch)
    assert [key.name for key, _ in runs.all()] == ["b"]


async def test_changes_are_taken_and_old_news_of_an_earlier_run_of_that_name_is_not(monkeypatch: Any) -> None:
    gone = object_of("a")
    changes = [("MODIFIED", at("a", "2")), ("ADDED", at("a", "1", "another")), ("DELETED", gone)]
    runs = await watching(([gone], changes), monkeypatch=monkeypatch)
    ((_, left),) = runs.all()
    assert not isinstance(left, Unreadable)
    assert left.metadata.uid == "another"


async def test_a_run_that_another_release_wrote_costs_the_others_nothing(monkeypatch: Any) -> None:
    strange = object_of("b", future={"field": 1})
    again = object_of("c", version="2", future=True)
    changes = [("MODIFIED", again), ("MODIFIED", at("a", "2"))]
    runs = await watching(([object_of("a"), strange, object_of("c")], changes), monkeypatch=monkeypatch)
    (_, first), (_, second), (_, third) = runs.all()
    assert not isinstance(first, Unreadable)
    assert first.metadata.resource_version == "2"
    assert isinstance(second, Unreadable)
    assert "spec.future" in second.why
    assert isinstance(third, Unreadable)
    assert third.phase == "Unknown"
    assert runs.waits is None


async def test_it_is_ready_once_it_has_listed_and_stays_so_while_the_server_is_away(monkeypatch: Any) -> None:
    client: Any = None
    assert "not been listed" in str(Runs(client, ()).waits)
    runs = await watching(([object_of("a")], []), monkeypatch=monkeypatch)
    assert (runs.waits, "it is away" in str(runs.problem)) == (None, True)


async def test_one_namespace_that_is_gone_keeps_nobody_else_waiting(monkeypatch: Any) -> None:
    runs = await watching(([object_of("a")], []), monkeypatch=monkeypatch, namespaces=("gone", "team"))
    assert runs.waits is None
    assert "the dashboard's own account may not list deepcoderruns" in str(runs.problem_of("gone"))
    alone = await watching(monkeypatch=monkeypatch, namespaces=("gone", "team"))
    assert alone.waits is not None


async def test_an_answer_that_is_none_ends_no_watch_for_good(monkeypatch: Any) -> None:
    """Its thread would end, and the page would show what was known then for ever."""
    runs = await watching(
        ([object_of("a")], [("MODIFIED", {"kind": "Status"})]), ([object_of("b")], []), monkeypatch=monkeypatch
    )
    assert [key.name for key, _ in runs.all()] == ["b"]


async def test_what_is_known_stays_while_the_server_is_away_and_it_is_said(monkeypatch: Any) -> None:
    runs = await watching(([object_of("a")], []), monkeypatch=monkeypatch)
    assert runs.get(RunKey("team", "a")) is not None
    assert "cannot be watched" in str(runs.problem)


async def test_who_waits_is_told_of_what_they_wait_for_alone(monkeypatch: Any) -> None:
    runs = await watching(([object_of("a")], []), monkeypatch=monkeypatch)
    with runs.waiting(RunKey("team", "a")) as one, runs.waiting(None) as all_of_them:
        runs._take("MODIFIED", run_of("b", version="9"))
        assert await one.changes(0.01) == set()
        assert await all_of_them.changes(0.01) == {RunKey("team", "b")}
        runs._take("MODIFIED", run_of("a", version="2"))
        runs._take("MODIFIED", run_of("a", version="3"))
        assert await one.changes(0.01) == {RunKey("team", "a")}
        assert await one.changes(0.01) == set(), "woken once for both"


async def test_all_are_told_when_the_watch_breaks_and_when_it_goes_on(monkeypatch: Any) -> None:
    runs = await watching(([object_of("a")], []), monkeypatch=monkeypatch)
    with runs.waiting(RunKey("team", "b")) as waiter:
        runs._take_all(None, [])
        assert await waiter.changes(0.01) == {EVERYTHING}
        runs._take_all(None, [])
        assert await waiter.changes(0.01) == set(), "it went on before"


async def test_what_a_namespace_lists_says_nothing_of_the_runs_of_another(monkeypatch: Any) -> None:
    runs = await watching(([object_of("a")], []), monkeypatch=monkeypatch)
    runs._take_all("other", [run_of("b", "other")])
    assert [key.namespace for key, _ in runs.all()] == ["other", "team"]
    runs._take_all("other", [])
    assert [key.namespace for key, _ in runs.all()] == ["team"]


async def test_it_is_not_ready_while_a_namespace_has_not_answered_yet() -> None:
    client: Any = None
    runs = Runs(client, ("team", "other"))
    runs._take_all("team", [run_of("a")])
    assert runs.waits == "the runs have not been listed yet"
    runs._take_all("other", [])
    assert runs.waits is None
