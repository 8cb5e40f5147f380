"""What an administrator gives a team: rights on a bucket that are enough and open no other, and a queue before GPUs."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
import yaml
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as AdministratorsKeys
from botocore.httpsession import URLLib3Session
from run_manifests import run_manifest

from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.errors import Forbidden, KubeError
from deepcoder_operator.kube.resources import RUNS, Resource
from deepcoder_operator.storage.s3 import Bucket, Buckets, Credentials, StorageProblem, Target
from deepcoder_trainer.checkpoint.storage_s3 import S3Store

TEAMS = Path(__file__).resolve().parents[2] / "examples" / "teams"
ADMISSION = "admissionregistration.k8s.io"
POLICIES = Resource(ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy")
BINDINGS = Resource(ADMISSION, "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")


class Teams:
    """Two users of one S3 server, the bucket of each with the example's policy for it."""

    def __init__(self, server: s3_server.S3Server) -> None:
        self.server, self.mark = server, uuid.uuid4().hex[:6]
        self.root: Any = server.client()
        statements = json.loads((TEAMS / "bucket-policy.json").read_text())["Statement"]
        for team in ("red", "blue"):
            self._add_user(self.key(team), f"{team}-secret")
            self.root.create_bucket(Bucket=self.bucket(team))
            text = json.dumps([s | {"Principal": {"AWS": [self.key(team)]}} for s in statements])
            policy = {
                "Version": "2012-10-17",
                "Statement": json.loads(text.replace("team-red-runs", self.bucket(team))),
            }
            self.root.put_bucket_policy(Bucket=self.bucket(team), Policy=json.dumps(policy))

    def key(self, team: str) -> str:
        return f"{team}-{self.mark}"

    def bucket(self, team: str) -> str:
        return f"team-{team}-runs-{self.mark}"

    def operator(self, team: str, bucket: str) -> Bucket:
        """As the operator and the page open a run's bucket."""
        keys = Credentials(self.key(team), f"{team}-secret", source="Secret deepcoder-s3")
        return Buckets().open(Target(self.server.endpoint, None, keys), self.bucket(bucket))

    def _add_user(self, key: str, secret: str) -> None:
        """By this server's own interface for administrators, which S3 has no word for."""
        account = f"<Account><Access>{key}</Access><Secret>{secret}</Secret><Role>user</Role></Account>"
        request = AWSRequest("PATCH", f"{self.server.endpoint}/create-user", data=account.encode())
        S3SigV4Auth(AdministratorsKeys(s3_server.ACCESS, s3_server.SECRET), "s3", "us-east-1").add_auth(request)
        answer = URLLib3Session(timeout=60).send(request.prepare())
        assert answer.status_code < 300, answer.text


@pytest.fixture
def teams(s3: s3_server.S3Server) -> Teams:
    return Teams(s3)


@pytest.fixture
def trainer(teams: Teams, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """What a trainer of team-red's stores with."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", teams.key("red"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "red-secret")
    return S3Store(teams.bucket("red"), "team-red/demo-0a1b2c3d", endpoint=teams.server.endpoint, region=None)


@pytest.mark.s3
def test_the_policy_grants_all_that_trainer_and_operator_do(teams: Teams, trainer: S3Store, tmp_path: Path) -> None:
    large = tmp_path / "w.bin"
    large.write_bytes(bytes(9 << 20))
    trainer.put_file("16k/step-000010.a001/w.bin", large)  # in parts
    trainer.put_bytes("16k/step-000010.a001/MANIFEST.json", b"{}", if_absent=True)
    assert {o.key for o in trainer.list("16k/")} == {"16k/step-000010.a001/w.bin", "16k/step-000010.a001/MANIFEST.json"}
    trainer.get_file("16k/step-000010.a001/w.bin", tmp_path / "again")
    assert (tmp_path / "again").stat().st_size == 9 << 20
    started = trainer._client.create_multipart_upload(Bucket=teams.bucket("red"), Key="team-red/given-up")
    where = {"Bucket": teams.bucket("red"), "Key": "team-red/given-up", "UploadId": started["UploadId"]}
    trainer._client.abort_multipart_upload(**where)  # type: ignore[arg-type]

    bucket = teams.operator("red", "red")
    bucket.put_once("team-red/demo-0a1b2c3d/RUN.json", b"{}")
    assert bucket.get("team-red/demo-0a1b2c3d/RUN.json")[0] == b"{}"
    assert bucket.head("team-red/demo-0a1b2c3d/16k/step-000010.a001/w.bin").size == 9 << 20
    assert bucket.folders("team-red/") == ["demo-0a1b2c3d"]
    trainer.delete_prefix("16k/")
    bucket.delete_page("team-red/demo-0a1b2c3d/", "")
    assert not bucket.objects("team-red/")


@pytest.mark.s3
def test_the_keys_of_one_team_open_nothing_of_another_s(teams: Teams) -> None:
    teams.root.put_object(Bucket=teams.bucket("blue"), Key="team-blue/secret", Body=b"weights")
    stranger = teams.operator("red", "blue")
    for ask in (
        lambda: stranger.get("team-blue/secret"),
        lambda: stranger.head("team-blue/secret"),
        lambda: stranger.folders("team-blue/"),
        lambda: stranger.put_once("team-blue/claimed", b""),
        lambda: stranger.delete_page("team-blue/", ""),
    ):
        with pytest.raises(StorageProblem) as told:
            ask()
        assert told.value.problem.reason == "CredentialsRefused"
    assert teams.operator("blue", "blue").get("team-blue/secret")[0] == b"weights"


@pytest.fixture
async def queued(kube: Kube, namespace: str) -> AsyncIterator[str]:
    """A namespace whose runs have to be queued, once the API server has taken that up."""
    await kube.create(run_manifest(namespace, name="before"))
    documents = [
        d for d in yaml.safe_load_all((TEAMS / "queues.yaml").read_text()) if d["apiVersion"].startswith(ADMISSION)
    ]
    for resource, document in zip((POLICIES, BINDINGS), documents, strict=True):
        document["metadata"]["name"] = namespace
        if "policyName" in document["spec"]:
            document["spec"]["policyName"] = namespace
        await kube.post(resource.path(None), document)
    await kube.patch(NAMESPACES, None, namespace, {"metadata": {"labels": {"team": namespace}}})
    yield namespace
    for resource in (BINDINGS, POLICIES):
        await kube.delete(resource, None, namespace)


async def _refused(kube: Kube, manifest: dict[str, Any]) -> str:
    """What the API server says, once it refuses: a policy is in force a moment after it is made."""
    for _ in range(300):
        try:
            await kube.create(manifest)
        except Forbidden as error:
            return str(error)
        await kube.delete(RUNS, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
    raise AssertionError("the policy never came into force")


@pytest.mark.apiserver
async def test_a_run_that_names_no_queue_is_refused_and_told_which(kube: Kube, queued: str) -> None:
    said = await _refused(kube, run_manifest(queued, name="past"))
    assert "set spec.scheduling.queueName: training" in said
    await kube.create(run_manifest(queued, name="waits", scheduling={"queueName": "training"}))
    with pytest.raises(KubeError, match="queueName: training"):
        await kube.patch(RUNS, queued, "waits", {"spec": {"scheduling": {"queueName": None}}})
    # What the operator writes to a run from before the policy.
    await kube.patch(RUNS, queued, "before", {"metadata": {"finalizers": ["deepcoder.dev/drain"]}})
    await kube.patch(RUNS, queued, "before", {"metadata": {"finalizers": None}})


def test_each_team_has_its_share_and_its_own_namespace_alone() -> None:
    documents = list(yaml.safe_load_all((TEAMS / "queues.yaml").read_text()))
    shares = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "ClusterQueue"}
    assert set(shares) == {"team-red", "team-blue"}
    for name, spec in shares.items():
        assert spec["namespaceSelector"] == {"matchLabels": {"team": name}}
        assert spec["resourceGroups"] == shares["team-red"]["resourceGroups"]
    (made, *_) = yaml.safe_load_all((TEAMS / "team.yaml").read_text())
    assert made["metadata"]["labels"]["team"] == made["metadata"]["name"] == "team-red"
