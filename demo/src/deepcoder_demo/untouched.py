"""Refuses a user's cluster in which the demo would change what others have made: its names are common ones.

Release and namespaces of the demo say that the demo made them, the release by a value and the namespaces by a label.
What has such a name and does not say so is left alone, and the error says how to make room. It uses only the standard
library, because the checks before the set-up import it.
"""

from __future__ import annotations

import json
from typing import Any

from deepcoder_demo.commands import CommandFailed, run
from deepcoder_demo.platform import RELEASE
from deepcoder_demo.settings import MADE_BY, NAMESPACE, OPERATOR_NAMESPACE, SettingsError

SECONDS = 30


def check(kubeconfig: str) -> None:
    """Raise SettingsError if a release or a namespace has a name of the demo's and is not the demo's."""
    environment = {"KUBECONFIG": kubeconfig}
    listed = run(
        ["kubectl", "get", "namespaces", "-o", "json", "--request-timeout=20s"], seconds=SECONDS, env=environment
    )
    command = ["helm", "get", "values", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--output", "json"]
    try:
        values = json.loads(run(command, seconds=SECONDS, env=environment)) or {}
    except CommandFailed as error:
        if "not found" not in str(error):
            raise
        values = None
    if problems := others(json.loads(listed)["items"], values):
        raise SettingsError(f"KUBECONFIG={kubeconfig} names a cluster that is in use: " + "; ".join(problems))


def others(namespaces: list[dict[str, Any]], values: dict[str, Any] | None) -> list[str]:
    """What of the demo's names belongs to others, each with the mend. The values are the release's, if there is one."""
    problems, label = [], ",".join(f"{key}={value}" for key, value in MADE_BY.items())
    if values is not None and (values.get("podAnnotations") or {}).items().isdisjoint(MADE_BY.items()):
        problems.append(
            f"the demo did not make the release {RELEASE} in namespace {OPERATOR_NAMESPACE}, and would change its "
            "images and values. Use another cluster, or, if nobody needs that release: "
            f"helm uninstall {RELEASE} -n {OPERATOR_NAMESPACE}"
        )
    for found in (n["metadata"] for n in namespaces):
        labels = found.get("labels") or {}
        if found["name"] in (NAMESPACE, OPERATOR_NAMESPACE) and labels.items().isdisjoint(MADE_BY.items()):
            problems.append(
                f"the demo did not make the namespace {found['name']}, and would change its labels and write into it. "
                f"Delete it, or give it to the demo: kubectl label namespace {found['name']} {label}"
            )
    return problems
