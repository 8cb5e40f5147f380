"""`approve`, `suspend`, `resume`: what is done to a run, what is said of it, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
import pytest

from deepcoder_cli.commands.control import approve, resume, suspend
from deepcoder_cli.program import CODES
from deepcoder_client import errors
from deepcoder_client.connection import Object
from deepcoder_client.errors import ClientError, Unknown
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import Phase


def run_of(phase: str, *, approved: Sequence[str] = (), held: Sequence[str] = ()) -> DeepCoderRun:
    names = ("short", "middle", "long")
    stages = [{"name": n, "index": i, "phase": "Held" if n in held else "Pending"} for i, n in enumerate(names)]
    return DeepCoderRun.model_validate(
        {
            "metadata": {"namespace": "team", "name": "demo", "uid": "u"},
            "spec": {
                "model": {"uri": "/models/demo"},
                "dataset": {"uri": "/data/train.jsonl"},
                "stages": [{"name": name, "contextTokens": 64, "maxSteps": 20} for name in names],
                "approvedStages": list(approved),
                "sandbox": {"template": {}},
                "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
            },
            "status": {"phase": phase, "stages": stages},
        }
    )


class Cluster:
    """One run, in `phase` now and in `later` once it was waited for."""

    def __init__(self, phase: str, later: str = "", **more: Any) -> None:
        self.run, self.later = run_of(phase, **more), later
        self.waited: list[tuple[float, Callable[[DeepCoderRun], bool]]] = []
        self.approved: list[str] = []

    def client(self) -> Cluster:
        return self

    def get(self, name: str) -> DeepCoderRun:
        return self.run

    suspend = resume = get

    def approve(self, name: str, stages: Sequence[str]) -> DeepCoderRun:
        self.approved = list(stages)
        return run_of(self.run.status.phase, approved=["short", *stages])

    def wait(self, run: DeepCoderRun, *, seconds: float, until: Callable[[DeepCoderRun], bool]) -> DeepCoderRun:
        self.waited.append((seconds, until))
        return run_of(self.later)


@pytest.mark.parametrize(
    ("phase", "wait", "later", "said", "code"),
    [
        ("Running", False, "", "will be suspended", 0),
        ("Running", True, "Suspended", "suspended", 0),
        ("Running", True, "Complete", "is Complete", 1),
        ("Failed", False, "", "is Failed", 0),
    ],
)
def test_a_run_is_suspended_and_what_is_said_is_what_has_happened_so_far(
    phase: str, wait: bool, later: str, said: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster: Any = Cluster(phase, later)
    assert suspend(cluster, "demo", wait, 30, "table") == code
    told = capsys.readouterr()
    assert told.out == f"deepcoderrun/demo {said}\n"
    assert ("continues it with spec.from" in told.err) is (phase == "Failed")
    assert len(cluster.waited) == wait
    for seconds, until in cluster.waited:
        assert seconds == 30
        assert {each for each in Phase if until(run_of(each))} == {Phase.SUSPENDED, Phase.COMPLETE, Phase.FAILED}


def test_without_a_name_the_stages_are_approved_at_which_the_run_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    cluster: Any = Cluster("Held", held=["middle"])
    approve(cluster, "demo", (), "table")
    assert cluster.approved == ["middle"]
    assert capsys.readouterr().out == "deepcoderrun/demo approved: middle (of short, middle)\n"
    approve(cluster, "demo", ("long",), "table")
    assert cluster.approved == ["long"]
    nowhere: Any = Cluster("Running")
    with pytest.raises(click.UsageError, match="demo is Running and not held at any stage: name the stages to approve"):
        approve(nowhere, "demo", (), "table")
    assert nowhere.approved == []
    over: Any = Cluster("Failed")
    capsys.readouterr()
    approve(over, "demo", ("long",), "json")
    told = capsys.readouterr()
    assert json.loads(told.out)["spec"]["approvedStages"] == ["short", "long"]
    assert "note: demo is Failed already" in told.err
    approve(over, "demo", ("long",), "table")
    assert capsys.readouterr().out == "deepcoderrun/demo is Failed\n"


def test_a_run_is_resumed_and_a_program_gets_it_as_it_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    cluster: Any = Cluster("Suspended")
    resume(cluster, "demo", "table")
    assert capsys.readouterr() == ("deepcoderrun/demo resumed\n", "")
    resume(cluster, "demo", "json")
    assert json.loads(capsys.readouterr().out)["status"]["phase"] == "Suspended"
    over: Any = Cluster("Complete")
    resume(over, "demo", "table")
    told = capsys.readouterr()
    assert told.out == "deepcoderrun/demo is Complete\n"
    assert "note: demo is Complete already" in told.err


class NewerCluster(Cluster):
    """It makes each change, and answers with a run of another release."""

    def __init__(self, changed: bool) -> None:
        super().__init__("Running")
        self.plain: Object | None = None
        if changed:
            spec = {"approvedStages": ["short"], "future": 1}
            self.plain = {"metadata": {"namespace": "team", "name": "demo"}, "spec": spec}

    def unreadable(self, *_: Any, **__: Any) -> DeepCoderRun:
        raise Unknown("team/demo", "spec.future: unknown", self.plain)

    suspend = resume = approve = wait = unreadable


def test_what_was_changed_is_told_even_if_another_release_wrote_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    newer: Any = NewerCluster(changed=True)
    assert suspend(newer, "demo", False, 30, "table") == 0
    resume(newer, "demo", "table")
    approve(newer, "demo", ("short",), "table")
    assert capsys.readouterr().out.splitlines() == [
        "deepcoderrun/demo will be suspended",
        "deepcoderrun/demo resumed",
        "deepcoderrun/demo approved: short (of short)",
    ]
    resume(newer, "demo", "json")
    assert json.loads(capsys.readouterr().out)["spec"]["future"] == 1
    with pytest.raises(Unknown):
        suspend(newer, "demo", True, 30, "table")
    assert capsys.readouterr().out == "deepcoderrun/demo will be suspended\n", "though nobody can tell when it is"


def test_where_nothing_was_changed_nothing_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    untouched: Any = NewerCluster(changed=False)
    with pytest.raises(Unknown):
        resume(untouched, "demo", "table")
    assert capsys.readouterr().out == ""


def test_each_error_of_the_client_has_an_exit_code() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, ClientError)]
    assert Unknown in kinds
    assert [kind for kind in kinds if kind is not ClientError and not issubclass(kind, tuple(CODES))] == []
    assert CODES[Unknown] not in [code for kind, code in CODES.items() if kind is not Unknown]
