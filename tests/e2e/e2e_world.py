"""Access of the end-to-end tests to a real cluster: runs, pods and the bucket, with waits that say what for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from kubernetes import client
from urllib3.exceptions import HTTPError

from deepcoder_contracts.base import sha256_digest
from deepcoder_demo import manifest
from deepcoder_demo.commands import CommandFailed
from deepcoder_demo.settings import Cluster

GROUP, VERSION, RUNS = "deepcoder.dev", "v1alpha1", "deepcoderruns"
RUN_LABEL = "deepcoder.dev/run"
TIMEOUT = 15

T = TypeVar("T")
Object = dict[str, Any]


def wait_until(what: str, look: Callable[[], T | None], seconds: float, state: Callable[[], object] = lambda: "") -> T:
    """Look until something is found; a failure says what was awaited and what was so instead."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; instead: {state()}")
        time.sleep(0.5)


def patient(look: Callable[[], T]) -> Callable[[], T | None]:
    """The same check, which returns nothing while the API server is away."""

    def tried() -> T | None:
        try:
            return look()
        except client.ApiException as error:
            if error.status < 500 and error.status != 429:
                raise
        except (HTTPError, OSError, CommandFailed):
            pass
        return None

    return tried


@dataclass(frozen=True)
class World:
    """A cluster's API and bucket."""

    cluster: Cluster
    namespace: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a user's programs: this process's PATH, and a home, so kubectl's cache is not in the tree."""
        return {"KUBECONFIG": str(self.cluster.kubeconfig), "PATH": os.environ["PATH"], "HOME": str(Path.home())}

    @property
    def objects(self) -> client.CustomObjectsApi:
        return client.CustomObjectsApi()

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api()

    def small_run(self, name: str, steps: int = 6) -> Object:
        """The demo's run with only its first stage, few steps, small batches, and a checkpoint every second step."""
        run = manifest.rendered(manifest.load(), self.cluster.s3)
        run["metadata"] = {"name": name, "namespace": self.namespace}
        spec = run["spec"]
        spec["recipe"] |= {"promptsPerStep": 16, "groupSize": 4}
        stage = spec["stages"][0]
        stage["maxSteps"] = steps
        stage.pop("evaluate", None)
        spec["stages"] = [stage]
        spec["checkpoint"]["everySteps"] = 2
        spec.setdefault("failurePolicy", {})["backoff"] = {"initialSeconds": 1, "maxSeconds": 5}
        return run

    def create(self, run: Object) -> Object:
        return self.objects.create_namespaced_custom_object(
            GROUP, VERSION, self.namespace, RUNS, run, _request_timeout=TIMEOUT
        )

    def run(self, name: str) -> Object | None:
        try:
            return self.objects.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, RUNS, name, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status != 404:
                raise
            return None

    def status(self, name: str) -> Object:
        return (self.run(name) or {}).get("status", {})

    def patch(self, name: str, spec: Object) -> None:
        self.objects.patch_namespaced_custom_object(
            GROUP, VERSION, self.namespace, RUNS, name, {"spec": spec}, _request_timeout=TIMEOUT
        )

    def delete(self, name: str) -> None:
        try:
            self.objects.delete_namespaced_custom_object(
                GROUP, VERSION, self.namespace, RUNS, name, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status != 404:
                raise

    def brief(self, name: str) -> str:
        """Enough about a run to understand a failed wait."""
        status = self.status(name)
        conditions = [
            f"{c['type']}={c['status']}({c['reason']}: {c.get('message', '')})" for c in status.get("conditions", [])
        ]
        pods = [f"{p.metadata.name}={p.status.phase}" for p in self.pods(name)]
        return f"{status.get('phase')} {status.get('progress')} {status.get('attempt')} {conditions} {pods}"

    def wait_for(self, name: str, what: str, check: Callable[[Object], T | None], seconds: float) -> T:
        """Wait until the run's status passes a check; a failed run ends the wait at once."""

        def look() -> T | None:
            status = self.status(name)
            found = check(status)
            if not found and status.get("phase") == "Failed":
                raise AssertionError(f"the run failed while waiting: {what}; {self.brief(name)}")
            return found

        return wait_until(f"{name}: {what}", look, seconds, lambda: self.brief(name))

    def wait_for_phase(self, name: str, phase: str, seconds: float) -> Object:
        return self.wait_for(name, f"phase {phase}", lambda s: s if s.get("phase") == phase else None, seconds)

    def wait_gone(self, name: str, seconds: float) -> None:
        wait_until(f"{name} is gone", lambda: self.run(name) is None, seconds, lambda: self.brief(name))

    def rayjobs(self, name: str) -> list[str]:
        found = self.objects.list_namespaced_custom_object(
            "ray.io", "v1", self.namespace, "rayjobs", label_selector=f"{RUN_LABEL}={name}", _request_timeout=TIMEOUT
        )
        return sorted(item["metadata"]["name"] for item in found["items"])

    def pods(self, name: str) -> list[Any]:
        return list(
            self.core.list_namespaced_pod(
                self.namespace, label_selector=f"{RUN_LABEL}={name}", _request_timeout=TIMEOUT
            ).items
        )

    def kill_pod(self, name: str, namespace: str | None = None) -> None:
        """SIGKILL at once, as when a node loses power."""
        self.core.delete_namespaced_pod(
            name, namespace or self.namespace, grace_period_seconds=0, _request_timeout=TIMEOUT
        )

    def remains(self, uid: str, name: str) -> list[str]:
        """Objects of the namespace that belong to the run by label or by owner."""
        kinds = {
            "pods": self.core.list_namespaced_pod,
            "configmaps": self.core.list_namespaced_config_map,
            "services": self.core.list_namespaced_service,
            "secrets": self.core.list_namespaced_secret,
            "serviceaccounts": self.core.list_namespaced_service_account,
            "networkpolicies": client.NetworkingV1Api().list_namespaced_network_policy,
            "poddisruptionbudgets": client.PolicyV1Api().list_namespaced_pod_disruption_budget,
        }
        found = [
            f"{kind}/{item.metadata.name}"
            for kind, listing in kinds.items()
            for item in listing(self.namespace, _request_timeout=TIMEOUT).items
            if (item.metadata.labels or {}).get(RUN_LABEL) == name
            or any(owner.uid == uid for owner in item.metadata.owner_references or [])
        ]
        for group, plural in (("ray.io", "rayjobs"), ("ray.io", "rayclusters"), (GROUP, "sandboxpools")):
            version = "v1" if group == "ray.io" else VERSION
            items = self.objects.list_namespaced_custom_object(
                group, version, self.namespace, plural, _request_timeout=TIMEOUT
            )["items"]
            found += [
                f"{plural}/{item['metadata']['name']}"
                for item in items
                if item["metadata"].get("labels", {}).get(RUN_LABEL) == name
            ]
        return found

    def stored(self, name: str, key: str) -> Any | None:
        """A JSON document (or, for .jsonl, its lines) below the run's folder in the bucket."""
        body = self.content(name, key)
        if body is None:
            return None
        return [json.loads(line) for line in body.splitlines()] if key.endswith(".jsonl") else json.loads(body)

    def digest(self, name: str, key: str) -> str | None:
        """Digest of a file's bytes as they are stored."""
        body = self.content(name, key)
        return None if body is None else sha256_digest(body)

    def content(self, name: str, key: str) -> bytes | None:
        """A file below the run's folder in the bucket."""
        folder = self.status(name)["provenance"]["storage"].removeprefix(f"s3://{self.cluster.s3.bucket}/")
        try:
            found = self.s3().get_object(Bucket=self.cluster.s3.bucket, Key=f"{folder}/{key}")
            body: bytes = found["Body"].read()
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        return body

    def s3(self) -> Any:
        """A client of the bucket's server, as this process reaches it."""
        access = self.cluster.s3
        return boto3.client(
            "s3",
            endpoint_url=access.host_endpoint,
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key,
            region_name=access.region,
            config=Config(connect_timeout=5, read_timeout=30, s3={"addressing_style": "path"}),
        )
