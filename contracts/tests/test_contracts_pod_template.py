"""Bounds of a pod template, which only the API server has set before. Its structure is in test_run_templates."""

from typing import Any

import pytest

from deepcoder_contracts.pod_template import malformed


def volumes(count: int, **more: Any) -> dict[str, Any]:
    return {"spec": {"volumes": [{"name": f"v{i}", "emptyDir": {}, **more} for i in range(count)]}}


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (volumes(1001), "t.spec.volumes has 1001 elements, more than 1000: make it shorter"),
        (
            {"spec": {"containers": [{"name": "a", "args": ["x"] * 1001}]}},
            "t.spec.containers[0].args has 1001 elements, more than 1000: make it shorter",
        ),
        (volumes(1000, note="x" * 300), "t has 337 KiB as JSON, more than 256: make it smaller"),
    ],
)
def test_a_template_far_larger_than_any_pods_is_refused_by_the_path_of_what_is_too_large(
    template: dict[str, Any], told: str
) -> None:
    """One tenant's 10,000 volumes would hold up the loop that all runs of the cluster share."""
    assert malformed(template, "t") == told


def test_a_large_template_within_the_bounds_is_none_of_these() -> None:
    assert malformed(volumes(1000), "t") is None


def test_a_template_that_contains_itself_or_never_ends_is_too_deep() -> None:
    """A YAML file can say the first with an anchor."""
    loop: dict[str, Any] = {"spec": {}}
    loop["spec"]["again"] = loop
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for template in (loop, deep, {"spec": [[[]]] * 2} | {"a": [[]]}):
        told = malformed(template, "t")
        assert told is not None
        assert ("nested more than 100 levels deep" in told) is (template is loop or template is deep)


def test_a_key_that_is_no_text_is_told_as_a_yaml_file_can_have_one() -> None:
    limits: Any = {8: "nvidia.com/gpu"}
    template = {"spec": {"containers": [{"name": "a", "resources": {"limits": limits}}]}}
    assert malformed(template, "t") == (
        "a key of t.spec.containers[a].resources.limits must be text (in quotes), not '8': fix the template"
    )
