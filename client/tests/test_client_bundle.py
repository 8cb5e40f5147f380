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
from deepcoder_client.errors import Forbidden, NotFound, StorageError, StorageFault
from deepcoder_client.permissions import Right
from deepcoder_client.run_folder import Attempt
from deepcoder_contracts.exit import ExitRecord

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
                    {"name": "DOOR_TOKEN", "value": "1234"},
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


RUNNING_HEAD = POD | {
    "metadata": POD["metadata"] | {"labels": {"deepcoder.dev/role": "head"}},
    "status": {"phase": "Running", "containerStatuses": [{"name": "ray-head"}]},
}
NODE = {
    "metadata": {"name": "gpu-7"},
    "spec": {"unschedulable": True, "podCIDR": "10.0.0.0/24"},
    "status": {"conditions": [{"type": "DiskPressure", "status": "True"}], "images": [{"names": ["i"]}] * 50},
}
QUOTA = {"metadata": {"name": "team"}, "status": {"hard": {"pods": "9"}, "used": {"pods": "9"}}}
OPERATOR = {
    "metadata": {"name": "op", "namespace": "deepcoder"},
    # Its Secrets are of its own namespace and must not be asked for in the run's.
    "spec": {"containers": [{"name": "operator", "envFrom": [{"secretRef": {"name": "of-the-chart"}}]}]},
    "status": {"containerStatuses": [{"name": "operator", "restartCount": 3}]},
}


class Connection:
    """Objects by kind; Secrets that may be withheld."""

    def __init__(self, *, withheld: tuple[str, ...] = ()) -> None:
        self.withheld = withheld
        self.gone: tuple[str, ...] = ()
        self.empty: tuple[str, ...] = ()
        self.operators: list[dict[str, Any]] = [OPERATOR]

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        if name in self.withheld:
            raise Forbidden(Right("get", "secrets", "", namespace))
        if name in self.gone:
            raise NotFound(f"no secrets {name}")
        if name in self.empty:
            return {}
        value = {"s3": PASSWORD, "hub": "hub-token-value"}[name]
        return {"data": {"key": base64.b64encode(value.encode()).decode()}}

    def list(self, kind: Kind, namespace: str | None, **query: str) -> dict[str, Any]:
        if kind.plural == "rayjobs":
            raise Forbidden(Right("list", "rayjobs", "ray.io", namespace))
        return {"items": {"pods": self.operators, "nodes": [NODE], "resourcequotas": [QUOTA]}.get(kind.plural, [])}


class Folder:
    """Three attempts, the last of which was killed."""

    lost = ""
    """Name of a file that cannot be read."""

    def attempts(self) -> list[Attempt]:
        left = ExitRecord(code=1, reason="Crashed", message="why")
        files = ("driver.log", "events.json")
        return [Attempt("short", n, None, left if n < 3 else None, files) for n in (1, 2, 3)]

    def read_log(self, stage: str, ordinal: int, name: str) -> str:
        if name == self.lost:
            raise StorageError("the connection broke")
        return f"{name} of {stage} {ordinal} says {PASSWORD}"


class Client:
    def __init__(self, **given: Any) -> None:
        self.connection = Connection(**given)

    def raw(self, name: str) -> dict[str, Any]:
        return RUN

    def pods(self, name: str, namespace: str) -> list[dict[str, Any]]:
        return [POD]

    def folder(self, name: str, namespace: str, *, endpoint: str | None) -> Folder:
        if endpoint == "http://away":
            raise StorageError("no answer")
        return Folder()

    def events(self, namespace: str, *names: str) -> list[dict[str, Any]]:
        return [{"reason": "StagePassed", "note": f"{QUOTED}, about {','.join(names)}"}]

    def find_pool(self, namespace: str, name: str) -> None:
        raise NotFound("no pool")

    def pod_log(self, namespace: str, name: str, container: str, *, tail: int, previous: bool = False) -> Iterator[str]:
        when = "before: " if previous else ""
        yield f"{when}{name} says {PASSWORD}"
        yield f"{when}team/demo: attempt 1" if name == "op" else "logged in with a-literal-key"


def bundle(*, logs: bool = False, withheld: tuple[str, ...] = (), endpoint: str | None = None) -> Bundle:
    client: Any = Client(withheld=withheld)
    return gather(client, "demo", operator_namespace="deepcoder", logs=logs, endpoint=endpoint)


def test_logs_and_objects_are_there_without_values_of_secrets() -> None:
    made = bundle()
    assert made.documents["logs/demo-head.ray-head.log"] == "demo-head says [redacted]\nlogged in with [redacted]"
    assert made.documents["operator.log"].splitlines()[0] == "team/demo: attempt 1"
    (pod,) = yaml.safe_load_all(made.documents["pods.yaml"])
    variables = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
    hidden = dict.fromkeys(("WANDB_API_KEY", "DOOR_TOKEN"), "[redacted]")
    assert variables == {"PLAIN": "seen", "HUB": None} | hidden, "also what is too short to be looked for in texts"
    assert "managedFields" not in pod["metadata"]
    (run,) = yaml.safe_load_all(made.documents["run.yaml"])
    assert run["metadata"]["annotations"] == {}
    assert "StagePassed" in made.documents["events.yaml"]
    assert any("rayjobs.ray.io" in line for line in made.missing)


@pytest.mark.parametrize("secret", ["s3", "hub"])
def test_logs_are_left_out_where_a_secret_is_not_known_and_that_is_said(secret: str) -> None:
    made = bundle(withheld=(secret,))
    assert {n for n in made.documents if not n.endswith(".yaml")} == set()
    everything = "".join(made.documents.values())
    assert "it said" not in everything, "nothing that quotes a program"
    assert all(word in everything for word in ("exitCode: 1", "reason: Crashed", "StagePassed"))
    assert any(f"Secret {secret}" in line and "permission to get secrets" in line for line in made.missing)
    assert any("--include-logs" in line for line in made.missing)


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"uri": "hf://a/b", "credentialsSecretRef": {"name": "hub"}}},
        {"stages": [{"name": "short", "resources": {"samplers": {"template": {"spec": POD["spec"]}}}}]},
    ],
    ids=["the run's own setting", "a template"],
)
def test_a_secret_is_removed_from_stored_logs_once_the_pods_that_could_read_it_are_gone(
    monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    """Every run that is over has no pods.

    The trainer that stored a log does not know what other pods read and print.
    """
    monkeypatch.setattr(Client, "pods", lambda *_: [])
    monkeypatch.setattr(Client, "raw", lambda *_: RUN | {"spec": RUN["spec"] | spec})
    monkeypatch.setattr(Folder, "read_log", lambda *_: QUOTED)
    assert bundle().documents["attempts/003/driver.log"] == "it said [redacted]"
    assert "attempts/003/driver.log" not in bundle(withheld=("hub",)).documents


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


def test_attempts_whose_pods_are_gone_are_there_as_the_bucket_has_them() -> None:
    """Of a run that has failed nothing else tells why."""
    made = bundle()
    past = {name: text for name, text in made.documents.items() if name.startswith("attempts/")}
    assert past.keys() == {
        "attempts/002/exit.json", "attempts/002/driver.log", "attempts/002/events.json",
        "attempts/003/driver.log", "attempts/003/events.json",
    }  # fmt: skip
    assert past["attempts/003/driver.log"] == "driver.log of short 3 says [redacted]"
    assert '"reason": "Crashed"' in past["attempts/002/exit.json"]
    assert any("the files of past attempts: no answer" in line for line in bundle(endpoint="http://away").missing)


def test_a_bucket_that_no_longer_answers_is_not_asked_for_the_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take minutes, until botocore gives it up. One that breaks off alone costs no other."""
    asked = []

    def read_log(_: Folder, stage: str, ordinal: int, name: str) -> str:
        asked.append((ordinal, name))
        raise StorageError("no answer", StorageFault.UNREACHABLE)

    monkeypatch.setattr(Folder, "read_log", read_log)
    made = bundle()
    assert asked == [(2, "driver.log"), (2, "events.json")]
    assert {name for name in made.documents if name.startswith("attempts/")} == {"attempts/002/exit.json"}
    assert [line for line in made.missing if line.startswith("attempts/")] == [
        "attempts/002/driver.log: no answer",
        "attempts/002/events.json: no answer",
        "attempts/003/driver.log: not read, because the bucket does not answer",
        "attempts/003/events.json: not read, because the bucket does not answer",
    ]


def test_a_file_of_an_attempt_that_cannot_be_read_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "lost", "driver.log")
    made = bundle()
    past = {name for name in made.documents if name.startswith("attempts/")}
    assert past == {"attempts/002/exit.json", "attempts/002/events.json", "attempts/003/events.json"}
    assert "attempts/003/driver.log: the connection broke" in made.missing


def test_what_the_live_trainer_prints_is_there_which_no_pods_log_has(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = ["step 7", f"and {PASSWORD}"]
    monkeypatch.setattr(Client, "pods", lambda *_: [RUNNING_HEAD])
    monkeypatch.setattr("deepcoder_client.bundle.driver_lines", lambda *_, **__: iter(printed))
    assert bundle().documents["logs/driver.log"] == "step 7\nand [redacted]"
    assert "logs/driver.log" not in bundle(withheld=("s3",)).documents
    leaving = RUNNING_HEAD | {"metadata": RUNNING_HEAD["metadata"] | {"deletionTimestamp": "2026-11-30T10:00:00Z"}}
    worker = RUNNING_HEAD | {"metadata": POD["metadata"] | {"labels": {"deepcoder.dev/role": "learner"}}}
    for head in (leaving, RUNNING_HEAD | {"status": {"phase": "Failed"}}, worker):
        monkeypatch.setattr(Client, "pods", lambda *_, head=head: [head])
        assert "logs/driver.log" not in bundle().documents


@pytest.mark.parametrize("what", ["pods", "events"])
def test_what_may_not_be_listed_is_named_and_costs_nothing_else(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def refused(*_: Any) -> None:
        raise Forbidden(Right("list", what, "", "team"))

    monkeypatch.setattr(Client, what, refused)
    made = bundle()
    assert any(line.startswith(f"{what}: you lack the permission to list {what}") for line in made.missing)
    assert f"{what}.yaml" not in made.documents
    assert "attempts/003/driver.log" in made.documents


def test_what_keeps_pods_from_nodes_is_there() -> None:
    documents = bundle().documents
    (node,) = yaml.safe_load_all(documents["nodes.yaml"])
    assert node["spec"] == {"unschedulable": True}
    assert node["status"] == {"conditions": [{"type": "DiskPressure", "status": "True"}]}, "and no list of images"
    assert yaml.safe_load(documents["namespace.yaml"])["status"] == QUOTA["status"]


def test_operator_that_ends_again_and_again_is_there_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle()
    (operator,) = yaml.safe_load_all(made.documents["operator.yaml"])
    assert operator["status"]["containerStatuses"][0]["restartCount"] == 3
    assert "before: op says [redacted]" in made.documents["operator.log"], "though it names no run"
    monkeypatch.setattr(Connection, "list", lambda *_, **__: {"items": []})
    for withheld in ((), ("s3",)):
        assert any("no pod in namespace deepcoder" in line for line in bundle(withheld=withheld).missing)


def test_who_may_not_read_the_operators_log_is_not_sent_for_a_role_that_reads_all_of_its_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(self: Client, namespace: str, name: str, *_: str, **__: Any) -> Iterator[str]:
        if name == "op":
            raise Forbidden(Right("get", "pods/log", "", namespace))
        yield "said"

    monkeypatch.setattr(Client, "pod_log", refused)
    (missing,) = [line for line in bundle().missing if line.startswith("the operator's log")]
    assert "get pods/log in namespace deepcoder" in missing
    assert "all teams' runs are in that log" in missing
    assert "role view" not in missing


def test_the_archive_has_one_folder_with_a_report_of_what_is_missing() -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle().archive("demo-1"))) as archive:
        names = archive.getnames()
        report = archive.extractfile("demo-1/REPORT.txt")
        assert report is not None
        assert b"missing: RayJobs: you lack the permission" in report.read()
    assert all(name.startswith("demo-1/") for name in names)


@pytest.mark.parametrize(
    ("secret", "optional", "withheld", "known"),
    [
        ("hub", False, (), False),
        ("hub", True, (), True),
        ("s3", True, (), False),
        ("hub", True, ("s3",), False),
    ],
)
def test_a_secret_that_was_deleted_is_not_known_unless_the_pods_may_do_without_it(
    monkeypatch: pytest.MonkeyPatch, secret: str, optional: bool, withheld: tuple[str, ...], known: bool
) -> None:
    """Its value may have been printed before. Pods that may do without it were started without it."""
    reference = {"name": "HUB", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token", "optional": optional}}}
    pod = POD | {"spec": {"containers": [{"name": "ray-head", "env": [reference]}]}}
    monkeypatch.setattr(Client, "pods", lambda *_: [pod])
    client: Any = Client(withheld=withheld)
    client.connection.gone = (secret,)
    made = gather(client, "demo", operator_namespace="deepcoder")
    assert ("logs/demo-head.ray-head.log" in made.documents) is known
    assert any("--include-logs" in line for line in made.missing) is not known


def test_a_secret_without_values_does_not_withhold_the_logs() -> None:
    client: Any = Client()
    client.connection.empty = ("hub",)
    made = gather(client, "demo", operator_namespace="deepcoder")
    assert made.documents["logs/demo-head.ray-head.log"].startswith("demo-head says [redacted]")


def test_the_judges_of_a_run_are_there_each_once_with_their_pool_and_what_they_print(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = {"metadata": {"name": "demo-sandbox", "namespace": "team"}, "status": {"readyReplicas": 1}}
    judge = {"metadata": {"name": "judge-0", "namespace": "team"}, "spec": {"containers": [{"name": "judge"}]}}
    own = RUN | {"spec": RUN["spec"] | {"sandbox": {"template": {}}}}
    monkeypatch.setattr(Client, "raw", lambda *_: own)
    monkeypatch.setattr(Client, "find_pool", lambda *_: pool)
    monkeypatch.setattr(Client, "judges", lambda *_: [judge, POD], raising=False)
    made = bundle()
    assert yaml.safe_load(made.documents["sandboxpool.yaml"])["status"] == {"readyReplicas": 1}
    pods = [pod["metadata"]["name"] for pod in yaml.safe_load_all(made.documents["pods.yaml"])]
    assert pods == ["demo-head", "judge-0"]
    assert made.documents["logs/judge-0.judge.log"].startswith("judge-0 says [redacted]")
    assert all(name in made.documents["events.yaml"] for name in ("demo-head", "judge-0", "demo-sandbox"))


def test_logs_are_left_out_where_secrets_have_too_many_forms_to_search_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcoder_contracts.redaction.MOST_FORMS", 1)
    made = bundle()
    assert {name for name in made.documents if not name.endswith(".yaml")} == set()
    assert any(line.startswith("values of Secrets that must be removed") for line in made.missing)


def test_an_operator_that_says_nothing_of_the_run_is_told_from_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Client, "pod_log", lambda *_, **__: iter(["another/run: attempt 1"]))
    started_once = OPERATOR | {"status": {}}
    for operators, said in (([started_once], True), ([], False)):
        monkeypatch.setattr(
            Connection,
            "list",
            lambda _, kind, *__, found=operators, **___: {"items": found if kind.plural == "pods" else []},
        )
        made = bundle()
        assert any("none of its pods in namespace deepcoder names the run" in line for line in made.missing) is said
        assert "operator.log" not in made.documents
