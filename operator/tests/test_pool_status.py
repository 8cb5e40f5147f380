"""A pool's status: what people read off it, and when it is worth a write."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from prometheus_client import REGISTRY

from deepcoder_contracts.api.sandboxpool import AvoidedNode, SandboxPoolStatus
from deepcoder_contracts.judge import EXIT_REFUSED
from deepcoder_operator.domain.pool_names import LABEL_AVOIDS, LABEL_INDEX, LABEL_TEMPLATE_HASH
from deepcoder_operator.domain.pool_plan import JudgeLoad, JudgePod
from deepcoder_operator.domain.pool_status import JUDGES_REFUSE, PoolFacts, Refusal, pool_status, worth_writing
from deepcoder_operator.sandbox import metrics
from deepcoder_operator.sandbox.observe import judge_pods

FACTS = PoolFacts("judges", generation=3, desired=2, wanted_without_bound=2, template_hash="h")


def pod(index: int, **changes: Any) -> JudgePod:
    values = {"ready": True, "load": JudgeLoad(4, 1, 2)} | changes
    return JudgePod(f"p{index}", f"u{index}", index, "h", 0.0, **values)


def conditions(status: SandboxPoolStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status.value, c.reason) for c in status.conditions}


def test_figures_are_those_of_the_ready_judges() -> None:
    pods = [pod(0), pod(1), pod(2, ready=False, load=None), pod(3, deleting=True), pod(4, ended=True, ready=False)]
    status = pool_status(SandboxPoolStatus(), FACTS, pods, 0.0)
    assert (status.replicas, status.ready_replicas, status.desired_replicas) == (3, 2, 2)
    assert (status.slots, status.busy_slots, status.queue_depth) == (8, 2, 4)
    assert status.observed_generation == 3
    assert {c.observed_generation for c in status.conditions} == {3}


def test_commonest_trouble_is_named_while_no_judge_is_ready() -> None:
    pods = [pod(i, ready=False, load=None, trouble="ImagePullBackOff") for i in range(2)]
    status = pool_status(SandboxPoolStatus(), FACTS, pods, 0.0)
    ready = next(c for c in status.conditions if c.type == "Ready")
    assert ready.status.value == "False"
    assert ready.reason == "ImagePullBackOff"
    assert "2 of 2 pods: ImagePullBackOff" in ready.message


def test_longest_wait_of_all_judges_is_told() -> None:
    pods = [pod(0, load=JudgeLoad(4, 4, 2, 3.9)), pod(1, load=JudgeLoad(4, 4, 9, 1.0))]
    assert pool_status(SandboxPoolStatus(), FACTS, pods, 0.0).longest_wait_seconds == 3


def test_judge_that_does_not_start_is_told_with_its_own_words_also_beside_one_that_works() -> None:
    crashed = pod(1, ready=False, load=None, trouble="CrashLoopBackOff", told="exit code 64: raise the limit")

    def of(*pods: JudgePod) -> dict[str, tuple[str, str]]:
        status = pool_status(SandboxPoolStatus(), FACTS, pods, 0.0)
        return {c.type: (c.reason, c.message) for c in status.conditions}

    words = "1 of 1 pods: CrashLoopBackOff: exit code 64: raise the limit"
    assert of(crashed)["Ready"] == ("CrashLoopBackOff", f"no judge is ready; {words}")
    beside = of(pod(0), crashed)
    assert beside["Ready"] == ("JudgesReady", "1 of 2 judges are ready")
    words = "1 of 2 pods: CrashLoopBackOff: exit code 64: raise the limit"
    assert beside["Scaling"] == ("ScalingUp", f"2 judges are wanted, 1 are ready; {words}")


REFUSES = pod(0, ready=False, load=None, trouble="CrashLoopBackOff", told="exit code 64: no Landlock", refuses=True)
STARTS = replace(REFUSES, name="p1", uid="u1", index=1, refuses=False, trouble=None, told="")


def ready_of(facts: PoolFacts, *pods: JudgePod) -> tuple[str, str]:
    status = pool_status(SandboxPoolStatus(), facts, pods, 0.0)
    return next((c.reason, c.message) for c in status.conditions if c.type == "Ready")


def test_pool_is_said_to_refuse_only_when_each_of_its_judges_does() -> None:
    one, also = replace(FACTS, desired=1), replace(REFUSES, name="p1", uid="u1", index=1)
    crashes = replace(also, refuses=False)
    words = "1 of 1 pods: CrashLoopBackOff: exit code 64: no Landlock"
    assert ready_of(one, REFUSES) == (JUDGES_REFUSE, f"no judge can start; {words}")
    assert ready_of(one, REFUSES, replace(also, deleting=True, refuses=False))[0] == JUDGES_REFUSE
    assert ready_of(FACTS, REFUSES, also)[0] == JUDGES_REFUSE
    assert ready_of(FACTS, REFUSES, crashes)[0] == "CrashLoopBackOff"
    assert ready_of(FACTS, REFUSES, STARTS)[0] == "CrashLoopBackOff"
    assert ready_of(FACTS, REFUSES, pod(1))[0] == "JudgesReady"


def test_judge_that_refuses_does_not_speak_for_those_that_are_still_to_be_made() -> None:
    """They may come to a node on which they can start."""
    assert ready_of(FACTS, REFUSES)[0] == "CrashLoopBackOff"


def statuses(*passes: tuple[PoolFacts, tuple[JudgePod, ...]]) -> list[tuple[str, str]]:
    """What the pool says of its judges in passes that follow each other."""
    status, told = SandboxPoolStatus(), []
    for facts, pods in passes:
        status = pool_status(status, facts, pods, 0.0)
        told += [(c.reason, c.message) for c in status.conditions if c.type == "Ready"]
    return told


ONE, NONE = replace(FACTS, desired=1), replace(FACTS, desired=0)
SAID = (JUDGES_REFUSE, "no judge can start; 1 of 1 pods: CrashLoopBackOff: exit code 64: no Landlock")


def test_pool_that_no_judge_could_start_for_says_so_without_pods_and_while_another_is_tried() -> None:
    """Else runs would ask for GPUs whenever one is tried, or nobody has wanted any for a while."""
    moved = replace(STARTS, trouble="Unschedulable", told="0/3 nodes")
    assert statuses((ONE, (REFUSES,)), (NONE, ()), (ONE, ()), (ONE, (STARTS,)), (FACTS, (moved,))) == [
        SAID, SAID, SAID, SAID, (JUDGES_REFUSE, "no judge can start; 1 of 1 pods: Unschedulable: 0/3 nodes"),
    ]  # fmt: skip


def test_judge_that_serves_is_the_end_of_a_refusal() -> None:
    told = statuses((ONE, (REFUSES,)), (ONE, (pod(1),)), (NONE, ()), (ONE, (STARTS,)))
    assert [reason for reason, _ in told] == [JUDGES_REFUSE, "JudgesReady", "Idle", "NoJudgeReady"]


def test_another_template_is_the_end_of_a_refusal_whatever_else_of_the_spec_is_not() -> None:
    mended = replace(ONE, template_hash="mended")
    told = statuses((ONE, (REFUSES,)), (replace(NONE, generation=9), ()), (replace(mended, desired=0), ()))
    assert [reason for reason, _ in told] == [JUDGES_REFUSE, JUDGES_REFUSE, "Idle"]


def test_refusal_is_remembered_through_what_the_api_server_refuses_meanwhile() -> None:
    refused = replace(ONE, refusal=Refusal("PodRefused", "exceeded quota: team"))
    unread = replace(ONE, template_hash="", refusal=Refusal("Forbidden", "the Secret may not be read"))
    told = statuses((ONE, (REFUSES,)), (refused, (REFUSES,)), (refused, ()), (unread, ()), (ONE, (STARTS,)))
    assert [reason for reason, _ in told] == [JUDGES_REFUSE] * 5, "else runs would ask for GPUs meanwhile"
    last_tried = "no judge could start when one was last tried"
    assert [message for _, message in told[1:]] == [
        f"{SAID[1]}; exceeded quota: team",
        f"{last_tried}; exceeded quota: team",
        f"{last_tried}; the Secret may not be read",
        last_tried,
    ]
    taken = replace(ONE, refusal=Refusal("NameConflict", "Pod p0 exists and does not belong to this pool"))
    assert statuses((ONE, (REFUSES,)), (taken, ()), (taken, (STARTS,)))[1:] == [
        ("NameConflict", "no judge is ready; Pod p0 exists and does not belong to this pool"),
        (JUDGES_REFUSE, f"{last_tried}; Pod p0 exists and does not belong to this pool"),
    ]


def test_judge_of_an_older_template_does_not_speak_for_those_of_the_one_that_mends_it() -> None:
    assert ready_of(replace(FACTS, desired=1, template_hash="mended"), REFUSES)[0] == "CrashLoopBackOff"


def test_what_cannot_be_done_for_a_pool_is_not_why_it_is_not_ready_while_its_judges_start() -> None:
    """A name that is taken is one judge's; runs give up their GPUs for a pool that says it of itself."""
    taken = replace(FACTS, refusal=Refusal("NameConflict", "Pod p0 exists and does not belong to this pool"))
    reason, message = ready_of(taken, STARTS)
    assert reason == "NoJudgeReady"
    assert "Pod p0 exists" in message
    assert ready_of(taken)[0] == "NameConflict"
    assert ready_of(taken, REFUSES)[0] == "NameConflict"


def test_why_the_api_server_refuses_judges_is_what_their_pool_says_of_itself() -> None:
    """A run quotes its pool's Ready alone, and pods that are not made tell nothing."""
    refused = replace(FACTS, refusal=Refusal("PodRefused", "exceeded quota: team"))

    def of(*pods: JudgePod) -> dict[str, tuple[str, str]]:
        status = pool_status(SandboxPoolStatus(), refused, pods, 0.0)
        return {c.type: (c.reason, c.message) for c in status.conditions}

    assert of()["Ready"] == ("PodRefused", "no judge is ready; exceeded quota: team")
    assert of(pod(0))["Scaling"] == ("ScalingUp", "2 judges are wanted, 1 are ready; exceeded quota: team")


def test_nodes_that_are_avoided_are_in_the_status() -> None:
    node = AvoidedNode(name="n1", template_hash="h", since=datetime(2026, 1, 1, tzinfo=UTC), message="no Landlock")
    status = pool_status(SandboxPoolStatus(), replace(FACTS, avoided=(node,)), [pod(0)], 0.0)
    assert status.to_wire()["avoidedNodes"] == [
        {"name": "n1", "templateHash": "h", "since": "2026-01-01T00:00:00Z", "message": "no Landlock"}
    ]


def test_how_many_nodes_are_avoided_is_told_as_long_as_there_is_the_pool() -> None:
    def told() -> float | None:
        labels = {"namespace": "of-this-test", "pool": "judges"}
        return REGISTRY.get_sample_value("deepcoder_operator_pool_avoided_nodes", labels)

    nodes = [AvoidedNode(name=n, template_hash="h", since=datetime(2026, 1, 1, tzinfo=UTC)) for n in ("n1", "n2")]
    metrics.show("of-this-test", "judges", SandboxPoolStatus(avoided_nodes=nodes))
    assert told() == 2
    metrics.show("of-this-test", "judges", SandboxPoolStatus())
    assert told() == 0
    metrics.forget("of-this-test", "judges")
    assert told() is None


def test_conditions_follow_the_pool() -> None:
    def of(facts: PoolFacts, pods: list[JudgePod]) -> dict[str, tuple[str, str]]:
        return conditions(pool_status(SandboxPoolStatus(), facts, pods, 0.0))

    assert of(FACTS, [pod(0), pod(1)]) == {
        "Accepted": ("True", "Valid"),
        "Ready": ("True", "JudgesReady"),
        "Scaling": ("False", "AsDesired"),
        "UpToDate": ("True", "Current"),
    }
    assert of(FACTS, [pod(0)])["Scaling"] == ("True", "ScalingUp")
    assert of(FACTS, [pod(0), pod(1), pod(2)])["Scaling"] == ("True", "ScalingDown")
    assert of(replace(FACTS, wanted_without_bound=9), [pod(0), pod(1)])["Scaling"] == ("False", "AtMaximum")
    assert of(replace(FACTS, desired=0), [])["Ready"] == ("True", "Idle")
    assert of(replace(FACTS, template_hash="other"), [pod(0), pod(1)])["UpToDate"] == ("False", "RollingOut")
    refused = of(replace(FACTS, template_hash="", refusal=Refusal("InvalidTemplate", "m")), [pod(0)])
    assert refused["Accepted"] == ("False", "InvalidTemplate")
    assert refused["Ready"] == ("True", "JudgesReady")


def test_transition_time_moves_only_when_a_condition_flips() -> None:
    first = pool_status(SandboxPoolStatus(), FACTS, [pod(0)], 0.0)
    second = pool_status(first, FACTS, [pod(0), pod(1)], 100.0)
    at = {c.type: c.last_transition_time.timestamp() for c in second.conditions}
    assert (at["Ready"], at["Scaling"]) == (0.0, 100.0)


def test_load_alone_is_written_now_and_then_and_all_else_at_once() -> None:
    old = pool_status(SandboxPoolStatus(), FACTS, [pod(0), pod(1)], 0.0)
    busier = pool_status(old, FACTS, [pod(0, load=JudgeLoad(4, 4, 9)), pod(1)], 1.0)
    fewer = pool_status(old, FACTS, [pod(0)], 1.0)
    assert not worth_writing(old, pool_status(old, FACTS, [pod(0), pod(1)], 1000.0), 1000.0)
    assert not worth_writing(old, busier, 14.0)
    assert worth_writing(old, busier, 15.0)
    assert worth_writing(old, fewer, 0.0)


def test_pod_of_an_earlier_pool_takes_a_name_and_nothing_else() -> None:
    obj = {
        "metadata": {
            "name": "judges-0-h",
            "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {LABEL_INDEX: "0", LABEL_TEMPLATE_HASH: "h"},
            "ownerReferences": [{"uid": "earlier", "controller": True}],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "podIP": "10.0.0.1"},
    }
    (ours,) = judge_pods([obj], "earlier")
    (theirs,) = judge_pods([obj], "now")
    assert (ours.deleting, ours.ready, ours.index) == (False, True, 0)
    assert theirs.deleting
    assert (ours.foreign, theirs.foreign) == (False, True)


def test_where_a_judge_is_and_since_when_it_is_not_ready_is_read() -> None:
    def read(status: str) -> tuple[str, str, float | None]:
        labels = {LABEL_AVOIDS: "required-12345678"}
        metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels}
        ready = {"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:01:00Z"}
        obj = {"metadata": metadata, "spec": {"nodeName": "n1"}, "status": {"conditions": [ready]}}
        (found,) = judge_pods([obj], "")
        return found.node, found.avoids, found.unready_since

    assert read("False") == ("n1", "required-12345678", 60.0)
    assert read("True") == ("n1", "required-12345678", None)


def test_how_long_a_judge_that_crashes_had_run_is_read() -> None:
    def read(**times: str | None) -> float:
        metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        ended = {"terminated": {"exitCode": 137, **times}}
        container = {"name": "judge", "ready": False, "state": {"waiting": {}}, "lastState": ended}
        (found,) = judge_pods([{"metadata": metadata, "status": {"containerStatuses": [container]}}], "")
        return found.ran_seconds

    assert read(startedAt="2026-01-01T00:00:00Z", finishedAt="2026-01-01T00:05:00Z") == 300.0
    assert read(startedAt=None, finishedAt="2026-01-01T00:05:00Z") == 0.0
    assert read() == 0.0


def test_reasons_of_pods_that_do_not_start_are_read() -> None:
    def read(status: dict[str, Any]) -> str | None:
        metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return judge_pods([{"metadata": metadata, "status": status}], "")[0].trouble

    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    assert read({"conditions": [unscheduled]}) == "Unschedulable"
    assert read({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}) == "CrashLoopBackOff"
    assert read({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}) is None
    assert read({"reason": "Evicted"}) == "Evicted"
    assert read({}) is None


def container(ready: bool = False, **states: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "judge", "ready": ready, **states}]}


def test_last_words_of_a_judge_that_crashes_are_read_also_while_it_is_started_again() -> None:
    def read(status: dict[str, Any]) -> tuple[str | None, str]:
        metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        found = judge_pods([{"metadata": metadata, "status": status}], "")[0]
        return found.trouble, found.told

    ended = {"exitCode": 64, "reason": "Error", "message": "{}\ndeepcoder-sandbox: the limit is 256 MiB. Mend: raise\n"}
    crashed = ("CrashLoopBackOff", "exit code 64: deepcoder-sandbox: the limit is 256 MiB. Mend: raise")
    waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    assert read(container(state=waits, lastState={"terminated": ended})) == crashed
    assert read(container(state={"terminated": ended})) == crashed
    assert read(container(state={"running": {}}, lastState={"terminated": ended})) == crashed
    assert read(container(ready=True, state={"running": {}}, lastState={"terminated": ended})) == (None, "")
    assert read(container(state={"running": {}}, lastState={"terminated": {"exitCode": 0}})) == (None, "")
    trouble, told = read(container(state=waits, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}))
    assert trouble == "CrashLoopBackOff"
    assert "OOMKilled" in told
    assert "raise the limit" in told
    silent = read(container(state=waits, lastState={"terminated": {"exitCode": 1}}))
    assert silent == ("CrashLoopBackOff", "exit code 1")
    token = {"exitCode": 1, "message": "refused: hf_AbCdEfGhIjKlMnOpQrSt"}
    assert read(container(state={"terminated": token}))[1] == "exit code 1: refused: [redacted]"
    other = container(state={"terminated": ended}, name="sidecar")
    assert read(other) == ("CrashLoopBackOff", "exit code 64"), "words of another container are its own"
    long = {"exitCode": 1, "message": "x" * 10_000}
    assert len(read(container(state={"terminated": long}))[1]) < 1000


def test_judge_refuses_to_start_when_it_has_said_so_three_times() -> None:
    def refuses(code: int, *, restarts: int, name: str = "judge", started: bool = False, **states: Any) -> bool:
        ended = {"terminated": {"exitCode": code, "message": "no Landlock"}}
        seen = {"state": {kind: ended.get(kind, {}) for kind in states}, "lastState": ended, "restartCount": restarts}
        seen["started"] = started
        metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        status = {"containerStatuses": [{"name": name, "ready": False, **seen}]}
        return judge_pods([{"metadata": metadata, "status": status}], "")[0].refuses

    assert not refuses(EXIT_REFUSED, restarts=1, waiting=True)
    assert refuses(EXIT_REFUSED, restarts=2, waiting=True)
    assert refuses(EXIT_REFUSED, restarts=2, terminated=True)
    assert not refuses(EXIT_REFUSED, restarts=2, running=True), "the third start is not over yet"
    assert refuses(EXIT_REFUSED, restarts=3, running=True)
    assert not refuses(EXIT_REFUSED, restarts=3, running=True, started=True), "it has started since, and is busy now"
    assert not refuses(1, restarts=9, waiting=True), "a crash may pass"
    assert not refuses(EXIT_REFUSED, restarts=9, waiting=True, name="sidecar")


def test_what_kubernetes_says_of_a_pod_that_does_not_start_is_read() -> None:
    def told(status: dict[str, Any]) -> str:
        metadata = {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return judge_pods([{"metadata": metadata, "status": status}], "")[0].told

    few = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: memory"}
    assert told({"conditions": [few]}) == "0/3 nodes: memory"
    pull = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    assert told(container(state=pull)).startswith("not found: check spec.image")
