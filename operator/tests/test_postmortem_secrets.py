"""What is saved of an attempt that failed holds no secret, in whatever form; where one is not known, no words of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from post_mortem_world import HEAD, TOKEN, Harness, encoded, event, pod

from deepcoder_contracts.api.stage import WorkerGroup
from deepcoder_operator.kube import errors
from deepcoder_operator.storage.s3 import StorageProblem

VALUES = {
    "plain": TOKEN,
    "quote": 'pass"word\\of the team',
    "umlaut": "schlüssel-der-Gruppe",
    "lines": '{\n "private_key_id": "0f3378a1b2c355",\n "client": "deepcoder@team"\n}\n',
}


@pytest.fixture
def crashed() -> Harness:
    return Harness()


async def test_no_document_holds_a_secret(crashed: Harness) -> None:
    bucket = ["the-secret-of-s3", "the-session-of-s3", "AKIDEXAMPLE"]
    secrets = [TOKEN, *bucket, "hf_AbCdEfGhIjKlMnOpQrSt", "AKIAIOSFODNN7EXAMPLE"]
    crashed.api.logs[HEAD] = "\n".join(f"env: {s}" for s in secrets)
    crashed.api.events = [event(HEAD, "Failed", f"bad key {TOKEN}", "2026-11-28T10:00:01Z")]
    crashed.api.pods[0]["status"]["message"] = f"exited with {TOKEN}"
    await crashed.save()
    assert len(crashed.storage.documents) == 3
    for name, text in crashed.storage.documents.items():
        assert not [s for s in secrets if s in text], name
        assert "[redacted]" in text


async def test_value_of_a_variable_that_is_named_as_a_secret_is_taken_out_of_logs(crashed: Harness) -> None:
    crashed.api.pods[0]["spec"]["containers"][0]["env"] += [
        {"name": "TRACKER_API_KEY", "value": "a-literal-key"}, {"name": "STEP", "value": "warming-up"},
    ]  # fmt: skip
    crashed.api.logs[HEAD] = "warming-up with a-literal-key"
    await crashed.save()
    assert crashed.document("head.log") == "warming-up with [redacted]"


REFERENCES: dict[str, Any] = {
    "environment": {"containers": [{"env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]},
    "whole environment": {"containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]},
    "init container": {"initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s"}}]}]},
    "mounted": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]},
    "projected": {"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]},
    "tenth": {
        "containers": [
            {"envFrom": [{"secretRef": {"name": f"s{i}"}} for i in range(9)] + [{"secretRef": {"name": "s"}}]}
        ]
    },
}


def refer(harness: Harness, how: str, value: str) -> None:
    """Let the head have a Secret in a way."""
    spec = harness.api.pods[0]["spec"]
    given = REFERENCES[how]
    spec["containers"][0] |= given.get("containers", [{}])[0]
    spec |= {key: each for key, each in given.items() if key != "containers"}
    harness.api.secrets |= {f"s{i}": {"k": encoded(f"other-value-{i}")} for i in range(9)}
    harness.api.secrets["s"] = {"k": encoded(value)}


@pytest.mark.parametrize("how", REFERENCES)
async def test_every_way_to_a_secret_is_known(crashed: Harness, how: str) -> None:
    refer(crashed, how, "mounted-or-not-it-is-secret")
    crashed.api.logs[HEAD] = "login with mounted-or-not-it-is-secret"
    told = await crashed.save()
    assert told is not None
    assert told[0] == "PostMortemSaved", told
    assert crashed.document("head.log") == "login with [redacted]"


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_value_is_taken_out_of_every_document_before_it_is_encoded(crashed: Harness, value: str) -> None:
    refer(crashed, "mounted", value)
    crashed.api.logs[HEAD] = "\n".join(f"12:00 {line}" for line in [*value.splitlines(), encoded(value)])
    crashed.api.events = [event(HEAD, "Failed", f"bad key {value}", "2026-11-28T10:00:01Z")]
    crashed.api.pods[0]["status"]["message"] = f"exited with {value}"
    await crashed.save()
    assert len(crashed.storage.documents) == 3
    sought = {line.strip() for line in [*value.splitlines(), encoded(value)] if len(line.strip()) >= 6}
    for name, text in crashed.storage.documents.items():
        read = text if name.endswith(".log") else json.dumps(json.loads(text), ensure_ascii=False)
        for one in sought:
            assert one not in read, name
            assert json.dumps(one)[1:-1] not in text, name
            assert json.dumps(one, ensure_ascii=False)[1:-1] not in text, name
        assert "[redacted]" in text, name


@pytest.mark.parametrize(
    "withheld", [errors.Forbidden("secrets is forbidden", 403), errors.Unavailable("429"), None], ids=str
)
async def test_where_a_secret_is_not_known_nothing_that_programs_printed_is_saved(
    crashed: Harness, withheld: Exception | None
) -> None:
    crashed.api.secrets.clear()
    if withheld is not None:
        crashed.api.withheld["wandb"] = withheld
    crashed.api.pods.append(pod("demo-s0-a1-learner-0", "learner", "Failed", 1))
    crashed.api.pods[1]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = f"bad {TOKEN}"
    crashed.api.logs[HEAD] = f"login with {TOKEN}"
    crashed.api.events = [event(HEAD, "Unhealthy", f"probe failed: {TOKEN}", "2026-11-28T10:00:01Z")]
    told = await crashed.save()
    assert told is not None
    assert (told[0], told[2]) == ("PostMortemPartly", True)
    assert "Secret wandb" in told[1]
    assert {k.rpartition("/")[2] for k in crashed.storage.documents} == {"events.json", "pods.json"}
    assert not [text for text in crashed.storage.documents.values() if TOKEN in text]


@pytest.mark.parametrize("withheld", ["the bucket's", "too many"])
async def test_secrets_that_cannot_be_searched_for_hold_no_attempts_end_up(crashed: Harness, withheld: str) -> None:
    """What is raised here would come before the deletion of the RayJob, and with it of the GPUs."""
    if withheld == "too many":
        crashed.api.secrets["wandb"]["key"] = encoded("\n".join(f"line-{i}-of-a-list" for i in range(5000)))
    else:
        crashed.storage.unknown = StorageProblem("SecretNotFound", "Secret s3 does not exist")
    told = await crashed.save()
    assert told is not None
    assert told[0] == "PostMortemPartly"
    assert "all program output" in told[1]
    assert {k.rpartition("/")[2] for k in crashed.storage.documents} == {"events.json", "pods.json"}


@pytest.mark.parametrize("role", ["samplers", "learners"])
@pytest.mark.parametrize("left", ["the head", "no pod"])
async def test_words_of_a_worker_that_is_gone_are_saved_without_its_secrets(
    crashed: Harness, left: str, role: str
) -> None:
    hub = {"spec": {"containers": [{"name": "ray-worker", "envFrom": [{"secretRef": {"name": "hub"}}]}]}}
    stage = crashed.run.spec.stages[0]
    resources = stage.resources.model_copy(update={role: WorkerGroup(template=hub)})
    spec = crashed.run.spec.model_copy(update={"stages": [stage.model_copy(update={"resources": resources})]})
    crashed.run = crashed.run.model_copy(update={"spec": spec})
    crashed.api.secrets["hub"] = {"k": encoded("key-of-hub")}
    crashed.api.logs[HEAD] = "(sampler pid=7) 401 for key-of-hub"
    crashed.api.events = [event(crashed.attempt.name, "Failed", "401 for key-of-hub", "2026-11-28T10:00:01Z")]
    if left == "no pod":
        crashed.api.pods.clear()
    await crashed.save()
    assert "401 for [redacted]" in crashed.document("head.log" if left == "the head" else "events.json")
    assert not [text for text in crashed.storage.documents.values() if "key-of-hub" in text]


async def test_secret_that_pods_run_without_need_not_be_there(crashed: Harness) -> None:
    spec = crashed.api.pods[0]["spec"]
    spec["volumes"] = [{"name": "v", "secret": {"secretName": "spare", "optional": True}}]
    told = await crashed.save()
    assert told is not None
    assert told[0] == "PostMortemSaved"
