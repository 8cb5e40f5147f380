"""Runs that somebody has made large: they take no more memory than others, and hide no other run."""

from __future__ import annotations

import copy
import gc
import json
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from web_fakes import object_of, until

from deepcoder_client import deep_json
from deepcoder_client.connection import Keep, Object
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_web.kept import shown
from deepcoder_web.runs import RunKey, Runs, Unreadable
from deepcoder_web.views import run_page

EMPTY: list[Object] = [{} for _ in range(150_000)]
TEMPLATE: Object = {"spec": {"containers": EMPTY}}


def with_templates(name: str) -> Object:
    """A run whose templates fill it, at each place where one may be, with what manages them beside."""
    run = copy.deepcopy(object_of(name))
    run["metadata"] |= {"labels": {f"l{i}": "" for i in range(9)}, "managedFields": [{"fieldsV1": {"f:spec": {}}}]}
    run["status"] = {"phase": "Pending"}
    run["spec"]["sandbox"]["template"]["template"] = TEMPLATE
    for role in ("head", "samplers", "learners"):
        run["spec"]["stages"][0].setdefault("resources", {}).setdefault(role, {})["template"] = {"spec": {}}
    return run


def test_a_list_of_large_runs_is_never_in_memory_as_a_whole() -> None:
    whole = with_templates("a")
    text = json.dumps({"metadata": {"resourceVersion": "7"}, "items": [whole] * 3}).encode()
    alone = json.dumps(whole)
    tracemalloc.start()
    try:
        json.loads(alone)
        _, one = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        listed = deep_json.parsed(text, shown)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [run["metadata"]["name"] for run in listed["items"]] == ["a"] * 3
    assert listed["metadata"] == {"resourceVersion": "7"}
    assert most < 1.5 * one
    assert kept < one / 100


def test_a_run_with_large_templates_is_shown_as_any_other() -> None:
    """Its operator refuses it, and what that says is in its status."""
    run = DeepCoderRun.model_validate(shown(with_templates("a")))
    assert (run.status.phase, run.spec.stages[0].resources.samplers.replicas) == ("Pending", 1)
    assert run.metadata.labels == {}
    now, plain = datetime.now(UTC), DeepCoderRun.model_validate(object_of("a"))
    assert run_page(DeepCoderRun.model_validate(shown(copy.deepcopy(object_of("a")))), now) == run_page(plain, now)


def test_a_run_that_is_no_map_where_one_should_be_is_taken_as_it_is() -> None:
    for spec in (None, [], {"stages": {}}, {"stages": [None, {"resources": []}], "sandbox": {"template": "x"}}):
        assert shown({"metadata": {"name": "a"}, "spec": spec}) == {"metadata": {"name": "a"}, "spec": spec}


class Cluster:
    """Lists two runs. Then one of them changes, and its first version should be gone."""

    def __init__(self) -> None:
        self.large = object_of("large", future=EMPTY) | {"status": {"phase": "Running", "future": EMPTY}}
        self.runs: Runs | None = None
        self.left: list[str] | None = None

    def raw_list(self, *_: Any, keep: Keep, **__: Any) -> list[Object]:
        return [keep(object_of("other")), keep(self.large)]

    def raw_watch(self, *_: Any, keep: Keep, **__: Any) -> Iterator[tuple[str, Object]]:
        yield "MODIFIED", keep(object_of("other", version="2"))
        yield "MODIFIED", keep(object_of("another"))
        while self.runs is None or self.runs.get(RunKey("team", "another")) is None:
            time.sleep(0.001)
        held = [each for each in gc.get_objects() if isinstance(each, DeepCoderRun)]
        self.left = [run.metadata.resource_version for run in held if run.metadata.name == "other"]
        raise AssertionError("the watch is over")


async def test_a_run_that_is_too_large_is_told_by_name_and_no_first_version_outlives_the_next() -> None:
    cluster: Any = Cluster()
    runs = cluster.runs = Runs(cluster, ())
    runs.start()
    await until(lambda: cluster.left is not None, "the watch")
    runs.stop()
    large = runs.get(RunKey("team", "large"))
    assert isinstance(large, Unreadable)
    assert (large.uid, large.phase) == ("uid-large", "Running")
    assert large.why == "it has 1173 KiB without its pod templates, more than the dashboard keeps of a run"
    assert cluster.left == ["2"]
