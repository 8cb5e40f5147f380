"""The runs in memory: what goes while nobody watches is gone, and whoever waits is told what has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deepcoder_client.client import Change
from deepcoder_client.errors import Unreachable
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_web import runs as module
from deepcoder_web.runs import RunKey, Runs

SPEC = yaml.safe_load((Path(__file__).parents[2] / "examples" / "demo.yaml").read_text())["spec"]


def run_of(name: str, version: str = "1", namespace: str = "team") -> DeepCoderRun:
    metadata = {"namespace": namespace, "name": name, "uid": f"uid-{name}", "resourceVersion": version}
    return DeepCoderRun.model_validate({"metadata": metadata, "spec": SPEC})


class Server:
    """Lists and watches in the order given; a watch ends with an error, as one that broke."""

    def __init__(self, *rounds: tuple[list[DeepCoderRun], list[Change]]) -> None:
        self.rounds = list(rounds)
        self.changes: list[Change] = []

    def list(self, namespace: str | None, *, all_namespaces: bool) -> list[DeepCoderRun]:
        if not self.rounds:
            raise Unreachable("it is away")
        listed, self.changes = self.rounds.pop(0)
        return listed

    def watch(self, *_: Any, **__: Any) -> Iterator[Change]:
        yield from self.changes
        raise Unreachable("the watch broke")


async def watching(*rounds: tuple[list[DeepCoderRun], list[Change]], monkeypatch: Any) -> Runs:
    """After all rounds."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    server: Any = Server(*rounds)
    runs = Runs(server, ())
    runs.start()
    async with asyncio.timeout(10):
        while server.rounds or "it is away" not in str(runs.problem):
            await asyncio.sleep(0.01)
    runs.stop()
    return runs


async def test_a_run_that_went_while_the_watch_was_broken_is_gone(monkeypatch: Any) -> None:
    first = [run_of("a"), run_of("b")]
    runs = await watching((first, []), ([run_of("b")], []), monkeypatch=monkeypatch)
    assert [r.metadata.name for r in runs.all()] == ["b"]


async def test_changes_are_taken_and_old_news_of_an_earlier_run_of_that_name_is_not(monkeypatch: Any) -> None:
    gone = run_of("a")
    again = DeepCoderRun.model_validate({"metadata": {**gone.metadata.model_dump(), "uid": "another"}, "spec": SPEC})
    changes = [Change("MODIFIED", run_of("a", "2")), Change("ADDED", again), Change("DELETED", gone)]
    runs = await watching(([gone], changes), monkeypatch=monkeypatch)
    (left,) = runs.all()
    assert left.metadata.uid == "another"


async def test_what_is_known_stays_while_the_server_is_away_and_it_is_said(monkeypatch: Any) -> None:
    runs = await watching(([run_of("a")], []), monkeypatch=monkeypatch)
    assert runs.get(RunKey("team", "a")) is not None
    assert "cannot be watched" in str(runs.problem)


async def test_who_waits_is_told_of_what_they_wait_for_alone(monkeypatch: Any) -> None:
    runs = await watching(([run_of("a")], []), monkeypatch=monkeypatch)
    with runs.waiting(RunKey("team", "a")) as one, runs.waiting(None) as all_of_them:
        runs._take("MODIFIED", run_of("b", "9"))
        assert await one.changes(0.01) == set()
        assert await all_of_them.changes(0.01) == {RunKey("team", "b")}
        runs._take("MODIFIED", run_of("a", "2"))
        runs._take("MODIFIED", run_of("a", "3"))
        assert await one.changes(0.01) == {RunKey("team", "a")}
        assert await one.changes(0.01) == set(), "woken once for both"
