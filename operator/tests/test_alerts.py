"""The chart's alerts speak of metrics that the operator exports, with labels that these have, and each is tried."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql
import pytest
import yaml
from chart_render import EVERYTHING, only, run_helm
from prometheus_client import REGISTRY

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator import app, metrics
from deepcoder_operator.domain.pool_plan import Cause
from deepcoder_operator.metrics import WARNED_REASONS
from devcluster import testprograms
from devcluster.config import cache_root

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
PREFIX = "deepcoder_operator_"
RELEASE = "deepcoder_release"
"""A label of what Prometheus scrapes by the chart's monitor."""
CASES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    # alert: series that fire it, series that do not, when it is looked at; values as promtool writes them
    "DeepCoderRunFailed": (
        {'warnings_total{namespace="red",reason="Failed"}': "0x30 1x60"},
        {
            'warnings_total{namespace="red",reason="Failed"}': "3x90",
            'runs{namespace="red",phase="Failed"}': "3x90",
        },  # kept for their records
        "60m",
    ),
    "DeepCoderRunNotStarting": (
        {'oldest_run_seconds{namespace="red",phase="Starting"}': "0+60x20"},
        {
            'oldest_run_seconds{namespace="red",phase="Starting"}': "0+60x14 0+60x6",
            'oldest_run_seconds{namespace="red",phase="Running"}': "7200x20",
        },
        "18m",
    ),
    "DeepCoderRunsHindered": (
        {'runs_hindered{namespace="red",reason="RayJobForbidden"}': "1x20"},
        {'runs_hindered{namespace="red",reason="RayJobForbidden"}': "1x8 0x2 1x10"},
        "15m",
    ),
    "DeepCoderRunsPreempted": (
        {'attempt_failures_total{namespace="red",reason="Preempted"}': "0x10 8x80"},
        {
            'attempt_failures_total{namespace="red",reason="Preempted"}': "0x10 2x80",
            'attempt_failures_total{namespace="red",reason="Stalled"}': "0x10 9x80",
        },
        "60m",
    ),
    "DeepCoderRunStalled": (
        {'attempt_failures_total{namespace="red",reason="Stalled"}': "0x30 1x60"},
        {'attempt_failures_total{namespace="red",reason="Preempted"}': "0x30 9x60"},
        "60m",
    ),
    "DeepCoderAttemptsFail": (
        {'attempt_failures_total{namespace="red",reason="HeadLost"}': "0x10 6x80"},
        {'attempt_failures_total{namespace="red",reason="Preempted"}': "0x10 60x80"},
        "60m",
    ),
    "DeepCoderRunNotAccepted": (
        {'runs{namespace="red",phase="Pending"}': "1x60"},
        {'runs{namespace="red",phase="Pending"}': "1x20 0x40"},
        "45m",
    ),
    "DeepCoderRunHeld": (
        {'runs{namespace="red",phase="Held"}': "2x90"},
        {'runs{namespace="red",phase="Held"}': "2x30 0x60"},
        "70m",
    ),
    "DeepCoderPoolNotReady": (
        {
            'pool_ready_replicas{namespace="red",pool="p"}': "1x30",
            'pool_desired_replicas{namespace="red",pool="p"}': "2x30",
        },
        {
            'pool_ready_replicas{namespace="red",pool="p"}': "2x30",
            'pool_desired_replicas{namespace="red",pool="p"}': "2x30",
        },
        "20m",
    ),
    "DeepCoderPoolSaturated": (
        {'pool_queue_depth{namespace="red",pool="p"}': "99x30", 'pool_slots{namespace="red",pool="p"}': "8x30"},
        {'pool_queue_depth{namespace="red",pool="p"}': "20x30", 'pool_slots{namespace="red",pool="p"}': "8x30"},
        "20m",
    ),
    "DeepCoderJudgesFail": (
        {'pool_pods_deleted_total{namespace="red",pool="p",cause="JudgeFailed"}': "0x5 9x40"},
        {'pool_pods_deleted_total{namespace="red",pool="p",cause="ScaledDown"}': "0x5 9x40"},
        "30m",
    ),
    "DeepCoderJudgesAvoidNodes": (
        {'pool_avoided_nodes{namespace="red",pool="p"}': "0x5 1x40"},
        {
            'pool_avoided_nodes{namespace="red",pool="p"}': "0x5 2x25 0x20",
            'pool_ready_replicas{namespace="red",pool="p"}': "1x50",
        },
        "40m",
    ),
    "DeepCoderOperatorDown": (
        {'leader{pod="a"}': "0x10"},
        {'leader{pod="a"}': "0x10", 'leader{pod="b"}': "1x10"},
        "5m",
    ),
    "DeepCoderOperatorRestarts": (
        {'start_time_seconds{pod="a"}': "1+60x70", 'leader{pod="a"}': "1x70"},
        {'start_time_seconds{pod="a"}': "1x20 1200x20 2400x30", 'start_time_seconds{pod="b"}': "7x30 1900x40"},
        "60m",
    ),
    "DeepCoderNoStandby": (
        {'leader{pod="a"}': "1x20"},
        {'leader{pod="a"}': "1x20", 'leader{pod="b"}': "0x20"},
        "15m",
    ),
    "DeepCoderLeaseFlaps": (
        {"lease_transitions": "1+1x70"},
        {"lease_transitions": "7x30 8x40"},
        "60m",
    ),
    "DeepCoderWatchStale": (
        {'watch_age_seconds{watch="rayjobs"}': "400x5"},
        {'watch_age_seconds{watch="rayjobs"}': "290x5"},
        "3m",
    ),
    "DeepCoderWatchRefused": (
        {'watch_refused{watch="pods"}': "1x20", 'watch_age_seconds{watch="pods"}': "20x20"},
        {'watch_refused{watch="pods"}': "1x3 0x17"},
        "10m",
    ),
    "DeepCoderLoopLag": ({"loop_lag_seconds": "3x20"}, {"loop_lag_seconds": "0x5 9x2 0x13"}, "15m"),
    "DeepCoderPassesFail": (
        {'passes_total{result="ok"}': "0+10x40", 'passes_total{result="error"}': "0+10x40"},
        {'passes_total{result="ok"}': "0+100x40", 'passes_total{result="error"}': "0+1x40"},
        "30m",
    ),
    "DeepCoderStorageProblems": (
        {'runs_waiting_for_storage{namespace="red",reason="StorageUnreachable"}': "1x20"},
        {'runs_waiting_for_storage{namespace="red",reason="StorageUnreachable"}': "1x5 0x2 1x13"},
        "15m",
    ),
    "DeepCoderLeftBehind": (
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x65 1x20"},
        {
            'warnings_total{namespace="red",reason="LeftBehind"}': "4x85",
            'warnings_total{namespace="red",reason="CheckpointLost"}': "0x65 1x20",
        },
        "80m",
    ),
    "DeepCoderArtifactsLeft": (
        {'warnings_total{namespace="red",reason="ArtifactsLeft"}': "0x5 1x20"},
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x5 1x20"},
        "20m",
    ),
    "DeepCoderPostMortemPartly": (
        {'warnings_total{namespace="red",reason="PostMortemPartly"}': "0x5 1x20"},
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x5 1x20"},
        "20m",
    ),
    "DeepCoderCheckpointLost": (
        {'warnings_total{namespace="red",reason="CheckpointLost"}': "0x5 1x20"},
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x5 1x20"},
        "20m",
    ),
    "DeepCoderNoReports": (
        {
            'runs{namespace="red",phase="Running"}': "2x30",
            'progress_reports_total{code="200"}': "0+4x8 36x22",
            'progress_reports_total{code="503"}': "0+4x30",
        },
        {'runs{namespace="red",phase="Running"}': "2x30", 'progress_reports_total{code="200"}': "0+4x30"},
        "25m",
    ),
    "DeepCoderStatusRefused": ({"status_refused_total": "0x5 1x20"}, {"status_refused_total": "4x25"}, "10m"),
    "DeepCoderStatusDropped": (
        {'status_dropped_fields{kind="SandboxPool"}': "0x5 2x20"},
        {'status_dropped_fields{kind="SandboxPool"}': "0x5 2x5 0x15"},
        "20m",
    ),
    "DeepCoderEventsLost": (
        {'events_lost_total{cause="QueueFull"}': "0x5 99x20"},
        {'events_lost_total{cause="QueueFull"}': "0x5 2x20"},
        "12m",
    ),
    "DeepCoderProgressRefused": (
        {'progress_reports_total{code="403"}': "0+60x60"},
        {'progress_reports_total{code="503"}': "0+60x60"},
        "40m",
    ),
}


APPEARS: dict[str, dict[str, str]] = {
    "DeepCoderRunFailed": {'warnings_total{namespace="red",reason="Failed"}': "_x30 1x10 0x50"},  # started again
    "DeepCoderLeftBehind": {'warnings_total{namespace="red",reason="LeftBehind"}': "_x30 2x10"},  # replaced
    "DeepCoderArtifactsLeft": {'warnings_total{namespace="red",reason="ArtifactsLeft"}': "_x30 1x60"},
    "DeepCoderCheckpointLost": {'warnings_total{namespace="red",reason="CheckpointLost"}': "_x30 1x60"},
    "DeepCoderPostMortemPartly": {'warnings_total{namespace="red",reason="PostMortemPartly"}': "_x30 1x60"},
    "DeepCoderRunStalled": {'attempt_failures_total{namespace="red",reason="Stalled"}': "_x30 1x60"},
    "DeepCoderAttemptsFail": {'attempt_failures_total{namespace="red",reason="NodeLost"}': "_x30 4x60"},
    "DeepCoderRunsPreempted": {'attempt_failures_total{namespace="red",reason="Preempted"}': "_x30 6x60"},
}
"""What an operator has counted before Prometheus sees it for the first time, a few seconds after it took over. Alerts
last an hour, also if that operator does not."""
APPEARS_AT = "60m"


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
    promtool = testprograms.prometheus(cache_root()).parent / "promtool"
    (tmp_path / "alerts.yaml").write_text(all_rules())
    _prometheus(promtool, tmp_path, "check", "rules", "alerts.yaml")
    recorded = [rule for rule in rules() if "record" in rule]
    of = {rule["alert"]: ',namespace="red"' for rule in alerts_of_a_namespace()}
    for rule in alerts():
        name = rule["alert"]
        firing, silent, at = CASES[name]
        appears = [APPEARS[name]] if name in APPEARS else []
        tests = [
            {
                "name": f"{name} {'fires' if fires else 'is silent'}",
                "interval": "1m",
                "input_series": [{"series": f"{PREFIX}{s}", "values": values} for s, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"{of.get(name, "")}}})',
                        "eval_time": when,
                        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                    }
                ],
            }
            for fires, series, when in (
                (True, firing, at),
                (False, silent, at),
                *((True, series, APPEARS_AT) for series in appears),
            )
        ]
        spec = {"rule_files": [f"{name}.yaml"], "evaluation_interval": "1m", "tests": tests}
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({"groups": [{"name": "one", "rules": [*recorded, rule]}]})
        )
        (tmp_path / f"{name}-tests.yaml").write_text(yaml.safe_dump(spec))
    _prometheus(promtool, tmp_path, "test", "rules", *(f"{name}-tests.yaml" for name in CASES))


def test_of_two_releases_that_one_prometheus_scrapes_neither_hides_the_others_failure(
    helm: str, tmp_path: Path
) -> None:
    """The monitor of each gives its series a label by which its rules know them. Of series without it, which somebody
    scrapes in a way of his own, the rules of each take all."""
    rendered = {name: _rendered(helm, name) for name in ("demo", "other")}
    for name, objects in rendered.items():
        (endpoint,) = only(objects, "ServiceMonitor")["spec"]["endpoints"]
        given = {rule["targetLabel"]: rule["replacement"] for rule in endpoint.get("relabelings", ())}
        assert given == {RELEASE: f"dc/{name}"}
    files = []
    for alert, (firing, silent, at) in CASES.items():
        groups = [{"name": name, "rules": _of(objects, alert)} for name, objects in rendered.items()]
        (tmp_path / f"{alert}.yaml").write_text(yaml.safe_dump({"groups": groups}))
        one = _labelled(firing, "dc/demo") | _labelled(silent, "dc/other")
        tests = [
            {
                "name": f"{alert} of {fired_of}",
                "interval": "1m",
                "input_series": [{"series": f"{PREFIX}{s}", "values": values} for s, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count by ({RELEASE}) (ALERTS{{alertname="{alert}",alertstate="firing"}})',
                        "eval_time": at,
                        "exp_samples": [{"labels": f'{{{RELEASE}="{name}"}}', "value": 1} for name in fired_of],
                    }
                ],
            }
            for series, fired_of in ((one, ["dc/demo"]), (firing, ["dc/demo", "dc/other"]))
        ]
        spec = {"rule_files": [f"{alert}.yaml"], "evaluation_interval": "1m", "tests": tests}
        files.append(f"{alert}-tests.yaml")
        (tmp_path / files[-1]).write_text(yaml.safe_dump(spec))
    _prometheus(testprograms.prometheus(cache_root()).parent / "promtool", tmp_path, "test", "rules", *files)


def _rendered(helm: str, release: str) -> list[dict[str, Any]]:
    done = run_helm(helm, "template", release, values=EVERYTHING)
    assert done.returncode == 0, done.stderr
    return [doc for doc in yaml.load_all(done.stdout, yaml.CSafeLoader) if doc]


def _of(objects: list[dict[str, Any]], alert: str) -> list[dict[str, Any]]:
    """A release's rules that record something, and one of its alerts."""
    groups = only(objects, "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"] if rule.get("alert") in (None, alert)]


def _labelled(series: dict[str, str], release: str) -> dict[str, str]:
    label = f'{RELEASE}="{release}"'
    return {f"{s[:-1]},{label}}}" if "{" in s else f"{s}{{{label}}}": values for s, values in series.items()}


def _prometheus(promtool: Path, directory: Path, *words: str) -> None:
    done = subprocess.run([promtool, *words], cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
