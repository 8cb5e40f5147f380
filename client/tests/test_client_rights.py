"""A permission in words, and the role that grants it: as the chart and Kubernetes have them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_client.rights import READS, Right

CHART = Path(__file__).resolve().parents[2] / "helm/deepcoder-operator/templates/rbac-users.yaml"


def roles() -> dict[str, list[dict[str, Any]]]:
    """Rules of the chart's ClusterRoles for people, by the end of their name."""
    lines = [line for line in CHART.read_text().splitlines() if not line.strip().startswith("{{")]
    plain = "\n".join(line.replace('{{ include "deepcoder.fullname" . }}', "release") for line in lines)
    return {d["metadata"]["name"].removeprefix("release-"): d["rules"] for d in yaml.safe_load_all(plain) if d}


@pytest.mark.parametrize(
    ("verb", "resource"),
    [(v, r) for v in ("get", "list", "watch") for r in ("deepcoderruns", "sandboxpools")]
    + [("create", "deepcoderruns"), ("patch", "deepcoderruns")],
)
def test_the_role_that_is_named_grants_it(verb: str, resource: str) -> None:
    said = Right(verb, resource, "deepcoder.dev", "team").sentence()
    assert said.startswith(f"you lack the permission to {verb} {resource}.deepcoder.dev in namespace team: ask for")
    named = "view" if verb in READS else "edit"
    assert f"deepcoder-operator-{named}," in said
    rules = roles()[named]
    assert any(verb in r["verbs"] and resource in r["resources"] and "deepcoder.dev" in r["apiGroups"] for r in rules)


def test_other_rights_are_told_with_the_roles_of_those_who_own_them() -> None:
    assert "list deepcoderruns.deepcoder.dev in all namespaces: ask for a ClusterRoleBinding" in (
        Right("list", "deepcoderruns", "deepcoder.dev").sentence()
    )
    assert Right("get", "pods/log", "", "team").sentence().endswith("to Kubernetes' own role view")
    for verb in ("get", "create"):
        assert Right(verb, "pods/exec", "", "team").sentence().endswith("to Kubernetes' own role edit")
    assert "a Role for this Secret alone" in Right("get", "secrets", "", "team").sentence()
    assert Right("list", "rayjobs", "ray.io", "team").qualified == "rayjobs.ray.io"
    assert Right("get", "pods/log").qualified == "pods/log"
