"""The operator's ServiceAccount with the rights that the chart grants it, on the test's API server.

The chart is rendered once for each set of values, with a stand-in for the namespace's name, which is also the
release's: helm takes half a second each time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SERVICE_ACCOUNTS, Resource

_NAMESPACE = "the-namespace"
_GROUP = "rbac.authorization.k8s.io"
_RIGHTS = {
    "ClusterRole": Resource(_GROUP, "v1", "clusterroles", "ClusterRole"),
    "ClusterRoleBinding": Resource(_GROUP, "v1", "clusterrolebindings", "ClusterRoleBinding"),
    "Role": Resource(_GROUP, "v1", "roles", "Role"),
    "RoleBinding": Resource(_GROUP, "v1", "rolebindings", "RoleBinding"),
    "ServiceAccount": SERVICE_ACCOUNTS,
}
_TOKEN_SECONDS = 3600
_IN_FORCE_SECONDS = 60.0


@dataclass(frozen=True)
class Account:
    """A release's ServiceAccount."""

    namespace: str
    name: str
    kubeconfig: Path
    """With a token of the account's."""

    objects: list[Object]
    """All that the chart has rendered."""

    @property
    def user(self) -> str:
        """As the audit log names it."""
        return f"{self.namespace}:{self.name}"

    @property
    def roles(self) -> list[Object]:
        """What is granted to the operator, without what is granted to people."""
        bound = {o["roleRef"]["name"] for o in self.objects if o["kind"].endswith("Binding")}
        return [o for o in self.objects if o["kind"] in ("Role", "ClusterRole") and o["metadata"]["name"] in bound]

    @property
    def config(self) -> dict[str, Any]:
        """The operator's configuration, as the chart writes it."""
        (found,) = [o for o in self.objects if o["kind"] == "ConfigMap"]
        config: dict[str, Any] = yaml.load(found["data"]["config.yaml"], yaml.CSafeLoader)
        return config


@cache
def _rendered(helm: str, chart: Path, values: str) -> str:
    command = [helm, "template", _NAMESPACE, str(chart), "--namespace", _NAMESPACE, "--values", "-"]
    return subprocess.run(command, input=values, capture_output=True, text=True, timeout=60, check=True).stdout


def render(
    helm: str,
    chart: Path,
    namespace: str,
    values: dict[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    *,
    hooks: bool = False,
) -> list[Object]:
    """The chart's objects for a release in a namespace, both of one name, with names put in place of stand-ins; none
    of them is a CRD, or is made when the release is tested or uninstalled (`hooks`)."""
    text = _rendered(helm, chart, json.dumps((values or {}) | {"crds": {"install": False}}))
    for stand_in, name in ({_NAMESPACE: namespace} | dict(names or {})).items():
        text = text.replace(stand_in, name)
    objects = [o for o in yaml.load_all(text, yaml.CSafeLoader) if o]
    return [o for o in objects if hooks or "helm.sh/hook" not in (o["metadata"].get("annotations") or {})]


@asynccontextmanager
async def account(
    kube: Kube, kubeconfig: Path, objects: list[Object], namespace: str, directory: Path, *, people: bool = False
) -> AsyncIterator[Account]:
    """The account with its rights for as long as the context lasts; `people`: with the roles that go into Kubernetes'
    own for people, each of which the API server then puts together anew."""
    made = [o for o in objects if o["kind"] in _RIGHTS and (people or not _is_for_people(o))]
    for obj in made:
        place = obj["metadata"].get("namespace") or (namespace if obj["kind"] == "ServiceAccount" else None)
        await kube.post(_RIGHTS[obj["kind"]].path(place), obj)
    try:
        (name,) = [o["metadata"]["name"] for o in made if o["kind"] == "ServiceAccount"]
        path = directory / "operator.kubeconfig"
        path.write_text(json.dumps(with_token(kubeconfig, await token(kube, namespace, name))))
        made_of = Account(namespace, name, path, objects)
        for role in made_of.roles:
            await _in_force(kube, made_of, role)
        yield made_of
    finally:
        for obj in made:
            if obj["kind"].startswith("Cluster"):
                await kube.delete(_RIGHTS[obj["kind"]], None, obj["metadata"]["name"])


async def _in_force(kube: Kube, account: Account, role: Object) -> None:
    """Until the API server goes by a role and by what binds it, a moment after they are stored: what an operator asks
    for before that is refused, and the whole session fails for it."""
    rule = role["rules"][0]
    resource, _, subresource = rule["resources"][0].partition("/")
    about = {"verb": rule["verbs"][0], "group": rule["apiGroups"][0], "resource": resource, "subresource": subresource}
    about |= {"namespace": role["metadata"].get("namespace", ""), "name": rule.get("resourceNames", [""])[0]}
    body = {"spec": {"user": f"system:serviceaccount:{account.user}", "resourceAttributes": about}}
    body |= {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
    async with asyncio.timeout(_IN_FORCE_SECONDS):
        while not (await kube.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", body))["status"]["allowed"]:
            await asyncio.sleep(0.02)


def _is_for_people(obj: Object) -> bool:
    labels = obj["metadata"].get("labels") or {}
    return any(label.startswith(f"{_GROUP}/aggregate-to-") for label in labels)


async def token(kube: Kube, namespace: str, name: str) -> str:
    """Of a ServiceAccount."""
    spec = {"expirationSeconds": _TOKEN_SECONDS}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await kube.post(SERVICE_ACCOUNTS.path(namespace, name, "token"), request)
    return str(answer["status"]["token"])


def with_token(kubeconfig: Path, token: str) -> dict[str, Any]:
    """An administrator's kubeconfig as somebody else's."""
    config: dict[str, Any] = json.loads(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    return config
