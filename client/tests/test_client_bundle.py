"""A debug bundle: what is in it, what is taken out of it, and what is said of the rest."""

import base64
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from deepcoder_client.bundle import Bundle, gather
from deepcoder_client.connection import Kind
from deepcoder_client.errors import Forbidden, NotFound
from deepcoder_client.rights import Right

PASSWORD = "correct-horse-battery"
QUOTED = "it said hub-token-value"
POD: dict[str, Any] = {
    "metadata": {"name": "demo-head", "namespace": "team", "managedFields": [{"manager": "kubelet"}]},
    "spec": {
        "containers": [
            {
                "name": "ray-head",
                "env": [
                    {"name": "PLAIN", "value": "seen"},
                    {"name": "WANDB_API_KEY", "value": "a-literal-key"},
                    {"name": "HUB", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                ],
            }
        ]
    },
    "status": {
        "phase": "Failed",
        "containerStatuses": [{"name": "ray-head", "state": {"terminated": {"exitCode": 1, "message": QUOTED}}}],
    },
}
RUN: dict[str, Any] = {
    "metadata": {
        "name": "demo",
        "namespace": "team",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
    },
    "spec": {
        "sandbox": {"together": {}},
        "checkpoint": {"s3": {"bucket": "b", "credentialsSecretRef": {"name": "s3"}}},
    },
    "status": {
        "attempt": {"evidence": QUOTED},
        "conditions": [{"type": "Progressing", "reason": "Crashed", "message": QUOTED}],
    },
}


class Connection:
    """Objects by kind; Secrets that may be withheld."""

    def __init__(self, *, withheld: tuple[str, ...] = ()) -> None:
        self.withheld = withheld

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        if name in self.withheld:
            raise Forbidden(Right("get", "secrets", "", namespace))
        value = {"s3": PASSWORD, "hub": "hub-token-value"}[name]
        return {"data": {"key": base64.b64encode(value.encode()).decode()}}

    def list(self, kind: Kind, namespace: str, **query: str) -> dict[str, Any]:
        if kind.plural == "rayjobs":
            raise Forbidden(Right("list", "rayjobs", "ray.io", namespace))
        if kind.plural == "pods":  # the operator's
            return {"items": [{"metadata": {"name": "op", "namespace": namespace}, "spec": POD["spec"]}]}
        return {"items": []}


class Client:
    def __init__(self, **given: Any) -> None:
        self.connection = Connection(**given)

    def raw(self, name: str) -> dict[str, Any]:
        return RUN

    def pods(self, name: str, namespace: str) -> list[dict[str, Any]]:
        return [POD]

    def events(self, namespace: str, *names: str) -> list[dict[str, Any]]:
        return [{"reason": "StagePassed", "note": f"{QUOTED}, about {','.join(names)}"}]

    def find_pool(self, namespace: str, name: str) -> None:
        raise NotFound("no pool")

    def pod_log(self, namespace: str, name: str, container: str, *, tail: int, previous: bool = False) -> Iterator[str]:
        yield f"{'before: ' if previous else ''}{name} says {PASSWORD}"
        yield "team/demo: attempt 1" if name == "op" else "logged in with a-literal-key"


def bundle(*, logs: bool = False, withheld: tuple[str, ...] = ()) -> Bundle:
    client: Any = Client(withheld=withheld)
    return gather(client, "demo", operator_namespace="deepcoder", logs=logs)


def test_logs_and_objects_are_there_without_values_of_secrets() -> None:
    made = bundle()
    assert made.documents["logs/demo-head.ray-head.log"] == "demo-head says [redacted]\nlogged in with [redacted]"
    assert made.documents["operator.log"] == "team/demo: attempt 1"
    (pod,) = yaml.safe_load_all(made.documents["pods.yaml"])
    variables = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
    assert variables == {"PLAIN": "seen", "WANDB_API_KEY": "[redacted]", "HUB": None}
    assert "managedFields" not in pod["metadata"]
    (run,) = yaml.safe_load_all(made.documents["run.yaml"])
    assert run["metadata"]["annotations"] == {}
    assert "StagePassed" in made.documents["events.yaml"]
    assert any("rayjobs.ray.io" in line for line in made.missing)


@pytest.mark.parametrize("secret", ["s3", "hub"])
def test_logs_are_left_out_where_a_secret_is_not_known_and_that_is_said(secret: str) -> None:
    made = bundle(withheld=(secret,))
    assert {*made.documents} == {"run.yaml", "pods.yaml", "events.yaml"}
    everything = "".join(made.documents.values())
    assert "it said" not in everything, "nothing that quotes a program"
    assert all(word in everything for word in ("exitCode: 1", "reason: Crashed", "StagePassed"))
    assert any(f"Secret {secret}" in line and "permission to get secrets" in line for line in made.missing)
    assert any("--include-logs" in line for line in made.missing)


def test_logs_are_had_all_the_same_where_they_are_asked_for() -> None:
    made = bundle(withheld=("hub",), logs=True)
    assert made.documents["logs/demo-head.ray-head.log"].startswith("demo-head says [redacted]")


def test_what_a_container_said_before_it_was_started_again_is_there_and_what_ran_before_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restarted = {"name": "ray-head", "restartCount": 2, "state": {"running": {}}}
    spec = POD["spec"] | {"initContainers": [{"name": "fetch"}]}
    pod = POD | {"spec": spec, "status": {"containerStatuses": [restarted], "initContainerStatuses": []}}
    monkeypatch.setattr(Client, "pods", lambda *_: [pod])
    made = bundle()
    logs = {name for name in made.documents if name.startswith("logs/")}
    assert logs == {f"logs/demo-head.{name}.log" for name in ("fetch", "ray-head", "ray-head.previous")}
    assert made.documents["logs/demo-head.ray-head.previous.log"].startswith("before: demo-head says [redacted]")


def test_the_archive_has_one_folder_with_a_report_of_what_is_missing() -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle().archive("demo-1"))) as archive:
        names = archive.getnames()
        report = archive.extractfile("demo-1/REPORT.txt")
        assert report is not None
        assert b"missing: RayJobs: you lack the permission" in report.read()
    assert all(name.startswith("demo-1/") for name in names)
