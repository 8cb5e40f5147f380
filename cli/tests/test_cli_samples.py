"""`samples`: which rollouts of a step are shown, and what is said of the others."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from deepcoder_cli.commands.samples import samples
from deepcoder_client.errors import NoData


def row(
    group: int, reward: float | None, verdict: str, *, dropped: bool = False, response: str = "r"
) -> dict[str, Any]:
    return {
        "stage": "short", "group_id": group, "index": 0, "problem_id": f"p{group}", "reward": reward,
        "verdict": verdict, "finish": "stop", "response_tokens": 7, "response": response, "prompt": "q",
        "dropped": dropped,
    }  # fmt: skip


ROWS = [
    row(0, 1.0, "passed"),
    row(1, 0.0, "wrong_answer", response="a " * 40),
    row(1, 0.0, "wrong_answer", dropped=True),
    row(2, None, "error"),
]


class Cluster:
    """A bucket with one step."""

    def client(self) -> Cluster:
        return self

    def folder(self, run: str, *, endpoint: str | None) -> Cluster:
        return self

    def sample_steps(self, stage: str | None) -> list[tuple[str, int]]:
        return [("short", 10), ("short", 20)]

    def sample_table(self, stage: str | None, step: int | None) -> Any:
        class Table:
            def to_pylist(self) -> list[dict[str, Any]]:
                return [each | {"step": step} for each in ROWS]

        return Table()


def shown(output: str = "json", **chosen: Any) -> int:
    asked: dict[str, Any] = {"stage": None, "step": 20, "reward": None, "verdict": None, "problem": None}
    asked |= {"dropped": False, "limit": 20, "full": False, "list_steps": False, "endpoint": None}
    cluster: Any = Cluster()
    return samples(cluster, "demo", **(asked | chosen), output=output)


@pytest.mark.parametrize(
    ("chosen", "groups"),
    [
        ({}, [0, 1, 2]),
        ({"dropped": True}, [0, 1, 1, 2]),
        ({"reward": 0.0}, [1]),
        ({"reward": 0.0, "dropped": True}, [1, 1]),
        ({"verdict": "error"}, [2]),
        ({"problem": "p0"}, [0]),
        ({"problem": "p1", "verdict": "wrong_answer"}, [1]),
        ({"limit": 2}, [0, 1]),
    ],
)
def test_rollouts_are_chosen_by_all_that_is_asked_for_and_dropped_draws_only_on_request(
    chosen: dict[str, Any], groups: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(**chosen) == 0
    assert [each["group_id"] for each in json.loads(capsys.readouterr().out)] == groups


def test_a_table_says_how_many_there_are_and_cuts_long_responses(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("table", limit=2) == 0
    told = capsys.readouterr()
    assert told.err == "stage short step 20: 3 of 4 samples\n1 more: raise --limit\n"
    first, second = told.out.splitlines()[1:]
    assert first.split() == ["0", "0", "p0", "1", "passed", "stop", "7", "r"]
    assert second.endswith("a" + " a" * 29 + " …")
    assert shown("table", limit=3) == 0
    assert "more" not in capsys.readouterr().err


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_a_program_s_user_is_told_too_that_there_are_more(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(output, limit=2) == 0
    told = capsys.readouterr()
    assert (len(yaml.safe_load(told.out)), told.err) == (2, "1 more: raise --limit\n")
    assert shown(output, limit=3) == 0
    assert capsys.readouterr().err == ""


def test_where_none_matches_the_verdicts_that_there_are_are_told() -> None:
    with pytest.raises(NoData, match=r"none of the 4 samples .* verdicts: wrong_answer 2, passed 1, error 1"):
        shown(reward=1.0, verdict="error")


@pytest.mark.parametrize("step", [None, 20])
def test_steps_are_listed_without_reading_one(
    step: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Cluster, "sample_table", lambda *_: pytest.fail("a step was read"))
    assert shown("json", list_steps=True, step=step) == 0
    assert json.loads(capsys.readouterr().out) == [{"stage": "short", "step": 10}, {"stage": "short", "step": 20}]
