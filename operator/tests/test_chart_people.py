"""Roles that the chart makes for people: enough for what they are for, there without aggregation, opening no more."""

from __future__ import annotations

from typing import Any

import pytest
from chart_render import only, render

from deepcoder_client.permissions import DASHBOARD, READS, Right
from deepcoder_client.port_forward import forward_rights

AGGREGATED = "rbac.authorization.k8s.io/aggregate-to-"


def grants(role: dict[str, Any], right: Right) -> bool:
    return any(
        right.verb in r["verbs"] and right.resource in r["resources"] and right.group in r["apiGroups"]
        for r in role["rules"]
    )


@pytest.mark.parametrize(
    "right",
    [Right(v, r, "deepcoder.dev", "team") for v in READS for r in ("deepcoderruns", "sandboxpools")]
    + [Right(v, "deepcoderruns", "deepcoder.dev", "team") for v in ("create", "patch")],
    ids=lambda right: f"{right.verb} {right.resource}",
)
def test_the_role_that_a_message_names_grants_it(helm: str, right: Right) -> None:
    named = "view" if right.verb in READS else "edit"
    assert f"deepcoder-operator-{named}," in right.sentence()
    assert grants(only(render(helm), "ClusterRole", f"-{named}"), right)


def test_without_aggregation_the_roles_are_there_to_be_bound_and_part_of_nobody_s(helm: str) -> None:
    objects = render(helm, {"rbac": {"aggregate": False}})
    for name in ("-view", "-edit"):
        assert not [label for label in only(objects, "ClusterRole", name)["metadata"]["labels"] if AGGREGATED in label]


def test_named_namespaces_have_the_roles_as_their_own(helm: str) -> None:
    everywhere = render(helm)
    objects = render(helm, {"watchNamespaces": ["red", "blue"]})
    for name in ("-view", "-edit"):
        found = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"].endswith(name)]
        assert {o["metadata"]["namespace"] for o in found} == {"red", "blue"}
        assert all(o["rules"] == only(everywhere, "ClusterRole", name)["rules"] for o in found)


def test_whoever_edits_may_look_by_the_same_role(helm: str) -> None:
    """It is bound alone where nothing is aggregated."""
    objects = render(helm)
    view, edit = (only(objects, "ClusterRole", name)["rules"] for name in ("-view", "-edit"))
    assert all(rule in edit for rule in view)


def test_reaching_the_dashboard_takes_no_right_that_reads_secrets_or_enters_pods(helm: str) -> None:
    role = only(render(helm, {"web": {"enabled": True}}), "Role", "-dashboard")
    assert role["metadata"]["namespace"] == "dc"
    granted = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    needed = {(right.resource, right.verb) for right in forward_rights("dc")} | {("pods", "list")}
    assert granted == needed
    assert all(DASHBOARD in right.sentence() for right in forward_rights("dc"))
    assert not [o for o in render(helm) if o["kind"] == "Role" and o["metadata"]["name"].endswith("-dashboard")]
