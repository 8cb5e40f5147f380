"""The chart's alerts speak of metrics that the operator exports, with labels that these have, and each is tried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql
import pytest
import yaml
from alert_cases import APPEARS, APPEARS_AT, CASES, PREFIX, promtool, unit_test, write_unit_tests
from prometheus_client import REGISTRY

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator import app, metrics
from deepcoder_operator.domain.pool_plan import Cause
from deepcoder_operator.metrics import WARNED_REASONS

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "helm" / "deepcoder-operator" / "files"
RULES = FILES / "alerts.yaml"
STANDBY = FILES / "alerts-standby.yaml"
"""Groups more, where there are to be several replicas."""
KNOWN_VALUES = {
    "phase": {str(p) for p in Phase},
    "reason": {*(str(r) for r in FailureReason), *WARNED_REASONS},
    "cause": {str(c) for c in Cause},
    "result": {"ok", "error", "conflict"},
}
OF_THE_OPERATOR = {"DeepCoderNoReports"}
"""Alerts among those of runs that are about all of them: nobody's."""
OF_RUNS = {"DeepCoderStorageProblems"}
"""And the other way round."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.load(all_rules(), yaml.CSafeLoader)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recording() -> dict[str, str]:
    """Expressions by what is recorded, which stands before the alerts that use it, in the same group."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def alerts_of_a_namespace() -> list[dict[str, Any]]:
    """Those that speak of runs or pools, which belong to somebody."""
    groups = {group["name"]: group["rules"] for group in yaml.load(all_rules(), yaml.CSafeLoader)["groups"]}
    named = {rule.get("alert") for name in ("deepcoder-runs", "deepcoder-pools") for rule in groups[name]}
    return [rule for rule in alerts() if rule["alert"] in (named | OF_RUNS) - OF_THE_OPERATOR]


def all_rules() -> str:
    return RULES.read_text() + STANDBY.read_text()


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Series of the operator's process, and those that rules record, to their labels."""
    assert app.Operator, "whatever the process imports has registered its metrics"
    found: dict[str, set[str]] = {}
    for collector, names in REGISTRY._collector_to_names.items():
        for name in names:
            found[name] = set(getattr(collector, "_labelnames", ()))
    found |= {name: set(name.partition(":")[0].split("_")) for name in recording()}
    return found


def selectors(text: str) -> Iterator[tuple[str, str]]:
    """Series and the text of its matchers."""
    yield from re.findall(r"((?:[a-z_]+:)?deepcoder_[a-z_]+(?::\w+)?)(?:\{([^}]*)\})?", text)


def fired(rule: dict[str, Any], series: promql.Series, at: str) -> set[promql.Labels]:
    """The labels for which an alert fires at a time, and beside it those rules alone that record something."""
    minute = int(promql.seconds_of(at) // 60)
    held = promql.seconds_of(rule.get("for", "0m"))
    return promql.fired(rule["expr"], held, promql.recorded(recording(), series, minute), minute)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_alert_names_only_what_the_operator_exports(rule: dict[str, Any], exported: dict[str, set[str]]) -> None:
    named = list(selectors(rule["expr"]))
    assert named
    for series, matchers in named:
        assert series in exported, f"{series} is not exported"
        for label, values in re.findall(r'(\w+)[=!~]+"([^"]*)"', matchers):
            assert label in exported[series], f"{series} has no label {label}"
            assert label == "code" or set(values.split("|")) <= KNOWN_VALUES[label]
    for label in re.findall(r"\$labels\.(\w+)", str(rule.get("annotations"))):
        assert any(label in exported[series] for series, _ in named), f"no series has the label {label}"


def test_each_alert_says_how_grave_it_is_and_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    assert set(names) == set(CASES), "each is tried"


def test_the_page_of_alerts_has_each_of_them_and_no_other() -> None:
    """Where its runbook_url leads; a site makes an anchor of a heading as it is, in small letters."""
    page = (ROOT / "docs" / "alerts.md").read_text()
    assert sorted(re.findall(r"^### (DeepCoder\w+)$", page, re.MULTILINE)) == sorted(CASES)


def test_first_failure_of_a_kind_is_seen_as_an_increase(exported: dict[str, set[str]]) -> None:
    """A counter that appears with its first failure has not increased: it is there from a namespace's first run on."""
    metrics.Namespaces().enter("of-this-test")
    for reason in FailureReason:
        labels = {"namespace": "of-this-test", "reason": reason}
        assert REGISTRY.get_sample_value(f"{PREFIX}attempt_failures_total", labels) == 0


@pytest.mark.parametrize("rule", alerts_of_a_namespace(), ids=lambda rule: rule["alert"])
def test_alert_about_runs_says_in_which_namespace(rule: dict[str, Any]) -> None:
    firing, _, at = CASES[rule["alert"]]
    series = dict(promql.parsed_series(f"{PREFIX}{name}", values) for name, values in firing.items())
    assert {dict(labels).get("namespace") for labels in fired(rule, series, at)} == {"red"}, (
        "by which it is sent to whoever has it"
    )
    assert "{{ $labels.namespace }}" in rule["annotations"]["summary"]
    assert " -A" not in rule["annotations"]["description"], "the namespace is known"


@pytest.mark.parametrize(("alert", "reason"), [("DeepCoderAttemptsFail", "NodeLost"), ("DeepCoderRunsPreempted",
                                                                                      "Preempted")])  # fmt: skip
def test_what_fails_a_little_in_many_namespaces_is_told_of_in_each_that_has_its_part(alert: str, reason: str) -> None:
    """What they share is broken: a node, an image."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == alert)
    series = dict(
        promql.parsed_series(f'{PREFIX}attempt_failures_total{{namespace="{name}",reason="{reason}"}}', values)
        for name, values in {"red": "0x10 3x80", "blue": "0x10 3x80", "green": "0x90"}.items()
    )
    assert {dict(labels)["namespace"] for labels in fired(rule, series, "60m")} == {"red", "blue"}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
@pytest.mark.parametrize("fires", [True, False], ids=["fires", "silent"])
def test_alert_fires_when_it_should_alone(rule: dict[str, Any], fires: bool) -> None:
    firing, silent, at = CASES[rule["alert"]]
    given = (firing if fires else silent).items()
    series = dict(promql.parsed_series(f"{PREFIX}{name}", values) for name, values in given)
    assert bool(fired(rule, series, at)) is fires


@pytest.mark.parametrize(
    "rule", [rule for rule in alerts() if rule["alert"] in APPEARS], ids=lambda rule: rule["alert"]
)
def test_what_failed_while_no_operator_led_is_told_of_once_one_does(rule: dict[str, Any]) -> None:
    """A counter that appears with a count has not increased. The alert ends an hour later, as after any failure."""
    series = dict(promql.parsed_series(f"{PREFIX}{name}", values) for name, values in APPEARS[rule["alert"]].items())
    assert fired(rule, series, APPEARS_AT)
    later = {name: values + values[-1:] * 60 for name, values in series.items()}
    assert not fired(rule, later, "95m")


def test_prometheus_itself_agrees(tmp_path: Path) -> None:
    """Each alert in a file of its own, with what rules record: in each minute of each test promtool evaluates all rules
    of the file."""
    (tmp_path / "alerts.yaml").write_text(all_rules())
    promtool(tmp_path, "check", "rules", "alerts.yaml")
    recorded = [rule for rule in rules() if "record" in rule]
    of = {rule["alert"]: ',namespace="red"' for rule in alerts_of_a_namespace()}
    for rule in alerts():
        name = rule["alert"]
        firing, silent, at = CASES[name]
        appears = [APPEARS[name]] if name in APPEARS else []
        tests = [
            unit_test(
                f"{name} {'fires' if fires else 'is silent'}",
                series,
                f'count(ALERTS{{alertname="{name}",alertstate="firing"{of.get(name, "")}}})',
                when,
                ["{}"] if fires else [],
            )
            for fires, series, when in (
                (True, firing, at),
                (False, silent, at),
                *((True, series, APPEARS_AT) for series in appears),
            )
        ]
        write_unit_tests(tmp_path, name, [{"name": "one", "rules": [*recorded, rule]}], tests)
    promtool(tmp_path, "test", "rules", *(f"{name}-tests.yaml" for name in CASES))
