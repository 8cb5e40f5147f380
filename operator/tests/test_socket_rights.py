"""What a real API server asks of whoever looks into a pod, and what is then said to be missing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from chart_account import _RIGHTS, token, with_token

from deepcoder_client.connection import Connection
from deepcoder_client.driver_log import driver_lines
from deepcoder_client.errors import Forbidden, Unreachable
from deepcoder_client.port_forward import port_forward
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import SERVICE_ACCOUNTS

pytestmark = pytest.mark.apiserver

GROUP = "rbac.authorization.k8s.io"


async def user(kube: Kube, kubeconfig: Path, namespace: str, verbs: list[str], path: Path) -> Connection:
    """Somebody with these verbs on the sockets of pods."""
    rule = {"apiGroups": [""], "resources": ["pods/exec", "pods/portforward"], "verbs": verbs}
    subject = {"kind": "ServiceAccount", "name": "user", "namespace": namespace}
    reference = {"apiGroup": GROUP, "kind": "Role", "name": "user"}
    meta = {"metadata": {"name": "user", "namespace": namespace}}
    objects: list[tuple[Any, dict[str, Any]]] = [
        (SERVICE_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount"}),
        (_RIGHTS["Role"], {"apiVersion": f"{GROUP}/v1", "kind": "Role", "rules": [rule]}),
        (
            _RIGHTS["RoleBinding"],
            {"apiVersion": f"{GROUP}/v1", "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
        ),
    ]
    for resource, body in objects:
        await kube.post(resource.path(namespace), meta | body)
    path.write_text(json.dumps(with_token(kubeconfig, await token(kube, namespace, "user"))))
    return Connection.open(kubeconfig=path)


@pytest.mark.parametrize(("verbs", "missing"), [(["create"], "get"), (["get"], "create"), (["get", "create"], None)])
async def test_who_lacks_a_verb_is_told_which(
    kube: Kube, kubeconfig: Path, namespace: str, tmp_path: Path, verbs: list[str], missing: str | None
) -> None:
    """There is no such pod, which only they are told who may look into one."""
    connection = await user(kube, kubeconfig, namespace, verbs, tmp_path / "user")

    def look() -> None:
        list(driver_lines(connection, namespace, "nobody", tail=1, follow=False))

    for what, ask in (
        ("pods/exec", look),
        ("pods/portforward", lambda: port_forward(connection, namespace, "nobody", 80)),
    ):
        with pytest.raises(Forbidden if missing else Unreachable) as told:
            await asyncio.to_thread(ask)
        if missing:
            assert f"lack the permission to {missing} {what}" in str(told.value)
