"""What a debug bundle takes of the operator's log, which is of all teams."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from deepcoder_client import bundle
from deepcoder_client.bundle import Bundle, about_run
from deepcoder_client.connection import Kind

RUN: dict[str, Any] = {"metadata": {"name": "demo", "namespace": "team"}}
OPERATOR = {
    "metadata": {"name": "op", "namespace": "deepcoder"},
    "spec": {"containers": [{"name": "operator"}]},
    "status": {"containerStatuses": [{"name": "operator", "restartCount": 3}]},
}


@pytest.mark.parametrize(
    ("line", "about"),
    [
        ('{"message": "run team/demo: Crashed: it ended", "run": "team/demo"}', True),
        ("progress of team/demo: late.", True),
        ("PATCH /apis/deepcoder.dev/v1alpha1/namespaces/team/deepcoderruns/demo: 409", True),
        ("pool team/demo-sandbox: a pass failed", True),
        ('events of RayJob demo-s0-a2 cannot be listed: forbidden in the namespace "team"', True),
        ("pod demo-s0-a2-x7kq2-head of team is gone", True),
        ("run other/demo: Crashed: it ended", False),
        ("run team/demo-2: it ended", False),
        ("run team/demo.old: it ended", False),
        ("run my-team/demo: it ended", False),
        ("pool other/demo-sandbox: a pass failed", False),
        ("run other/x: RayJob demo-s0-a2 is gone", False),
        ("a demonstration", False),
    ],
)
def test_of_the_operators_log_only_lines_about_the_run_are_taken(line: str, about: bool) -> None:
    """All teams' runs are in that log, and a run of another team may have the same name, and RayJobs of the same."""
    names = ("demo-s0-a2", "demo-sandbox", "demo-s0-a2-x7kq2-head", "demo")
    own = {"all.yaml": [{"metadata": {"name": name}} for name in names]}
    assert about_run(RUN, own)(line) is about
    assert not about_run(RUN, {})("run other/demo: it ended")


class Client:
    """Notes what is listed, and has the logs of one pod of an operator."""

    def __init__(self, now: list[str], before: list[str]) -> None:
        self.logs = {False: now, True: before}
        self.asked: list[Any] = []
        self.connection = SimpleNamespace(list=self.list)

    def list(self, kind: Kind, namespace: str | None, **query: str) -> dict[str, Any]:
        self.asked.append((kind.plural, namespace, query))
        return {"items": []}

    def pod_log(self, namespace: str, name: str, container: str, *, tail: int, previous: bool = False) -> Iterator[str]:
        return iter(self.logs[previous])


def test_last_words_of_an_operator_that_ended_are_not_those_about_other_teams() -> None:
    before = ["run other/model: Crashed", "Traceback: MemoryError", "run team/demo: it ended", "pool other/p: full"]
    client: Any = Client(["run team/demo: Crashed", "leads", "run other/demo: Crashed"], before)
    asking = bundle._Asking(client, Bundle(), "demo", "team")
    said = asking.operator([OPERATOR], "deepcoder", about_run(RUN, {}))["operator.log"].splitlines()
    assert said == ["run team/demo: Crashed", "Traceback: MemoryError", "run team/demo: it ended"]


def test_the_operators_pods_are_found_by_the_label_that_no_value_of_the_chart_changes() -> None:
    client: Any = Client([], [])
    bundle._Asking(client, Bundle(), "demo", "team").surroundings("deepcoder")
    assert ("pods", "deepcoder", {"labelSelector": "deepcoder.dev/component=operator"}) in client.asked
