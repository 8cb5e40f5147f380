"""A permission in words, and the role that grants it: as the chart and Kubernetes have them."""

import pytest

from deepcoder_client.permissions import READS, Right
from deepcoder_client.port_forward import forward_rights


@pytest.mark.parametrize("verb", ["get", "list", "watch", "create", "patch"])
def test_a_right_on_our_kinds_is_told_with_the_chart_s_role(verb: str) -> None:
    said = Right(verb, "deepcoderruns", "deepcoder.dev", "team").sentence()
    assert said.startswith(f"you lack the permission to {verb} deepcoderruns.deepcoder.dev in namespace team: ask for")
    role = "view" if verb in READS else "edit"
    assert said.endswith(
        f"a RoleBinding there to the chart's role [<release>-]deepcoder-operator-{role}, or to Kubernetes' own {role} "
        "where the chart adds it there (rbac.aggregate, without watchNamespaces)"
    )


def test_the_dashboard_takes_the_chart_s_own_role_and_never_edit_where_the_operator_is() -> None:
    for right in forward_rights("deepcoder"):
        assert right.sentence().endswith(
            "in namespace deepcoder: ask for a RoleBinding there to the chart's Role "
            "[<release>-]deepcoder-operator-dashboard"
        )


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


def test_what_kubernetes_own_view_does_not_read_is_not_asked_for_there() -> None:
    """`view` has no kinds of the cluster's own, and KubeRay has a role for each of its kinds."""
    said = Right("list", "nodes").sentence()
    assert said.endswith(
        "ask for a ClusterRoleBinding to a ClusterRole that reads nodes, which Kubernetes' own view does not"
    )
    assert Right("list", "rayclusters", "ray.io", "team").role == "KubeRay's ClusterRole raycluster-viewer-role"
    assert Right("list", "rayjobs", "ray.io", "team").role == "KubeRay's ClusterRole rayjob-viewer-role"
