"""What is saved of an attempt that failed, before its cluster goes: logs, events, states of pods."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from post_mortem_world import HEAD, Harness, event, pod

from deepcoder_contracts.redaction import Redactor
from deepcoder_operator.controllers import postmortem
from deepcoder_operator.kube import errors
from deepcoder_operator.storage.s3 import StorageProblem


@pytest.fixture
def crashed() -> Harness:
    return Harness()


async def test_log_events_and_states_are_saved_below_the_attempt_and_told_where(crashed: Harness) -> None:
    crashed.api.events = [
        event(HEAD, "Killing", "stopping", "2026-11-28T10:00:01Z"),
        event(HEAD, "Pulled", "the image", "2026-11-28T09:30:00Z"),
        event("demo-s0-a1", "Created", "cluster", "2026-11-28T09:00:00Z"),
        event("somebody-else", "Created", "not ours", "2026-11-28T09:00:00Z"),
    ]
    told = await crashed.save()
    assert told is not None
    reason, message, warning = told
    assert (reason, warning) == ("PostMortemSaved", False)
    assert message.endswith("/short/attempts/001/logs/")
    assert "s3://" in message
    assert crashed.document("head.log") == "Traceback"
    assert [e["reason"] for e in json.loads(crashed.document("events.json"))] == ["Created", "Pulled", "Killing"]
    (state,) = json.loads(crashed.document("pods.json"))
    assert (state["node"], state["status"]["phase"]) == ("gpu-7", "Running")
    assert crashed.api.asked == [(20_000, 4 << 20)], "a log has no bound of its own"


async def test_log_is_the_trainers_and_not_of_a_container_that_a_mesh_has_put_before_it(crashed: Harness) -> None:
    crashed.api.pods[0]["spec"]["containers"] = [{"name": "istio-proxy"}, {"name": "ray-head"}]
    await crashed.save()
    assert crashed.api.containers == ["ray-head"]


async def test_pods_of_a_copied_rayjob_are_none_of_the_attempts_though_they_have_its_labels(
    crashed: Harness,
) -> None:
    crashed.api.pods[0]["metadata"]["ownerReferences"] = [{"uid": "cluster", "controller": True}]
    copied = pod("a-copy-head", "head")
    copied["metadata"]["ownerReferences"] = [{"uid": "a-copied-cluster", "controller": True}]
    crashed.api.pods.insert(0, copied)
    crashed.attempt = crashed.attempt.model_copy(update={"head_uid": HEAD})
    await crashed.save()
    assert crashed.document("head.log") == "Traceback"
    assert [p["metadata"]["name"] for p in json.loads(crashed.document("pods.json"))] == [HEAD]


async def test_of_a_thousand_workers_three_that_failed_are_read(crashed: Harness) -> None:
    for i in range(1000):
        name = f"demo-s0-a1-learner-{i}"
        crashed.api.pods.append(pod(name, "learner", "Failed" if i > 900 else "Running", 1 if i > 900 else None))
        crashed.api.logs[name] = "NCCL"
    await crashed.save()
    logs = [k.rpartition("/")[2] for k in crashed.storage.documents if k.endswith(".log")]
    assert logs == ["head.log", *(f"demo-s0-a1-learner-{i}.log" for i in (901, 902, 903))]
    assert crashed.api.event_lists < 10, "a request each for a thousand pods would be a flood"


@pytest.mark.parametrize(("phase", "code"), [("Failed", None), ("Running", 139)], ids=["evicted", "started again"])
async def test_worker_has_failed_by_its_phase_or_by_its_programs_end(
    crashed: Harness, phase: str, code: int | None
) -> None:
    crashed.api.pods.append(pod("demo-s0-a1-learner-0", "learner", phase, code))
    crashed.api.logs["demo-s0-a1-learner-0"] = "NCCL"
    await crashed.save()
    assert crashed.document("demo-s0-a1-learner-0.log") == "NCCL"


async def test_log_of_a_second_head_does_not_take_the_place_of_the_firsts(crashed: Harness) -> None:
    crashed.api.pods.append(pod("demo-s0-a1-head-2", "head"))
    crashed.api.logs["demo-s0-a1-head-2"] = "the second"
    await crashed.save()
    assert (crashed.document("head.log"), crashed.document("demo-s0-a1-head-2.log")) == ("Traceback", "the second")


async def test_log_that_a_kubelet_does_not_give_at_once_is_asked_for_again(
    crashed: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, refused = crashed.api.read_log, [errors.Unavailable("502"), errors.Unavailable("502")]

    async def busy(*arguments: Any) -> str:
        if refused:
            raise refused.pop()
        return await read(*arguments)

    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr(crashed.api, "read_log", busy)
    monkeypatch.setattr(postmortem.asyncio, "sleep", at_once)
    told = await crashed.save()
    assert told is not None
    assert told[0] == "PostMortemSaved"
    assert crashed.document("head.log") == "Traceback"


async def test_of_a_thousand_pods_what_is_equal_is_held_once_and_not_who_wrote_it(crashed: Harness) -> None:
    """As the API server sends them a thousand learners would take a hundred megabytes, four attempts of them four."""
    fields = [{"manager": "kubelet", "fieldsV1": {f"f:{i}": {} for i in range(200)}}]
    for i in range(3):
        made = pod(f"demo-s0-a1-learner-{i}", "learner")
        made["metadata"]["managedFields"] = fields
        made["spec"]["containers"][0]["env"].append({"name": "LONG_NAME", "value": "of equal length"})
        crashed.api.pods.append(json.loads(json.dumps(made)))
    await crashed.save()
    first, second = crashed.api.held[1:3]
    assert len(json.dumps(first)) < len(json.dumps(crashed.api.pods[1])) / 3
    values = [each["spec"]["containers"][0]["env"][1]["value"] for each in (first, second)]
    assert values[0] == "of equal length"
    assert values[0] is values[1]


@pytest.mark.parametrize("known", [True, False], ids=["its secrets are known", "they are not"])
async def test_nothing_that_is_searched_or_encoded_holds_up_the_loop(
    crashed: Harness, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """The states of two thousand pods take seconds, in which the Lease would not be renewed."""
    beside: dict[str, list[bool]] = {}

    def noted(owner: Any, name: str) -> None:
        does = getattr(owner, name)

        def work(*arguments: Any) -> Any:
            beside.setdefault(name, []).append(threading.current_thread() is not threading.main_thread())
            return does(*arguments)

        monkeypatch.setattr(owner, name, work)

    noted(Redactor, "text")
    noted(Redactor, "document")
    noted(postmortem, "without_words")
    noted(postmortem, "_json")
    crashed.api.events = [event(HEAD, "Failed", "it broke", "2026-11-28T10:00:01Z")]
    if not known:
        crashed.storage.unknown = StorageProblem("SecretNotFound", "create it")
    await crashed.save()
    assert {*beside} == {"text", "document", "_json"} | (set() if known else {"without_words"})
    assert all(all(each) for each in beside.values()), beside


async def test_what_cannot_be_had_is_named_and_the_rest_is_saved(crashed: Harness) -> None:
    crashed.api.refuses = errors.Forbidden("pods/log is forbidden", 403)
    told = await crashed.save()
    assert told is not None
    assert (told[0], told[2]) == ("PostMortemPartly", True)
    assert f"the log of {HEAD}" in told[1]
    assert "forbidden" in told[1]
    assert {k.rpartition("/")[2] for k in crashed.storage.documents} == {"events.json", "pods.json"}


async def test_head_that_is_gone_is_said(crashed: Harness) -> None:
    crashed.api.pods = []
    told = await crashed.save()
    assert told is not None
    assert "its pod is gone" in told[1]


async def test_bucket_that_refuses_is_said_once(crashed: Harness) -> None:
    crashed.storage.problem = StorageProblem("CredentialsRefused", "may not write")
    told = await crashed.save()
    assert told is not None
    assert told[1].count("may not write") == 1


async def test_log_that_does_not_come_holds_up_nothing(crashed: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postmortem, "GATHER_SECONDS", 0.05)
    crashed.api.slow = 60
    async with asyncio.timeout(30):
        told = await crashed.save()
    assert told is not None
    assert told[0] == "PostMortemPartly"
    assert "not read within" in told[1]
    assert {k.rpartition("/")[2] for k in crashed.storage.documents} == {"events.json", "pods.json"}, (
        "the rest is saved"
    )


async def test_it_is_done_once_for_an_attempt(crashed: Harness) -> None:
    saver = crashed.saver()
    assert await saver.save(crashed.run, crashed.attempt) is not None
    other = crashed.attempt.model_copy(update={"ordinal": 2})
    assert await saver.save(crashed.run, other) is not None
    assert await saver.save(crashed.run, crashed.attempt) is None
    assert len(crashed.api.asked) == 2


async def test_it_is_tried_again_until_it_is_stored(crashed: Harness) -> None:
    saver, crashed.storage.problem = crashed.saver(), StorageProblem("StorageUnreachable", "no answer")
    assert await saver.save(crashed.run, crashed.attempt) is not None
    crashed.storage.problem, crashed.api.slow = None, 60
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await saver.save(crashed.run, crashed.attempt)
    crashed.api.slow = 0
    told = await saver.save(crashed.run, crashed.attempt)
    assert told is not None
    assert told[0] == "PostMortemSaved"
    assert crashed.document("head.log") == "Traceback"


async def test_forty_logs_that_never_come_take_no_place_from_other_passes(crashed: Harness) -> None:
    saver, limit, crashed.api.slow = crashed.saver(), crashed.storage.limit, 60

    async def lost(ordinal: int) -> None:
        async with limit.place():
            attempt = crashed.attempt.model_copy(update={"ordinal": ordinal})
            await saver.save(crashed.run, attempt)

    tasks = [asyncio.create_task(lost(ordinal)) for ordinal in range(40)]
    try:
        await asyncio.sleep(0.1)
        async with asyncio.timeout(30), limit.place():
            assert 0 < len(crashed.api.asked) <= 4, "logs are held in memory: few at a time"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waits_for_its_turn_in_vain_says_so(crashed: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, stored, busy, release = crashed.saver(), crashed.storage.put, asyncio.Semaphore(0), asyncio.Event()

    async def put(run: Any, key: str, data: bytes) -> None:
        busy.release()
        await release.wait()
        await stored(run, key, data)

    monkeypatch.setattr(crashed.storage, "put", put)
    attempts = [crashed.attempt.model_copy(update={"ordinal": ordinal}) for ordinal in range(12)]
    first = [asyncio.create_task(saver.save(crashed.run, attempt)) for attempt in attempts[:4]]
    async with asyncio.timeout(30):
        for _ in first:
            await busy.acquire()
    monkeypatch.setattr(postmortem, "GATHER_SECONDS", 0.0)
    told = await asyncio.gather(*(saver.save(crashed.run, attempt) for attempt in attempts[4:]))
    assert [t[0] for t in told if t] == ["PostMortemPartly"] * 8
    assert all("other attempts' logs" in t[1] for t in told if t)
    release.set()
    assert [t[0] for t in await asyncio.gather(*first) if t] == ["PostMortemSaved"] * 4


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "Ready", "status": "Unknown"}]},
        {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]},
        {"reason": "NodeLost"},
    ],
)
async def test_node_that_is_lost_is_not_asked_for_logs(crashed: Harness, status: dict[str, Any]) -> None:
    crashed.api.pods[0]["status"] |= status
    told = await crashed.save()
    assert told is not None
    assert f"the log of {HEAD}: its node is lost" in told[1]
    assert not crashed.api.asked
