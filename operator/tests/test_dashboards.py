"""Grafana dashboards: as described, of metrics that somebody serves, in queries that Prometheus understands."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import promql
import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry

from deepcoder_contracts.judge import Capacity, Tier
from deepcoder_operator import app
from deepcoder_sandbox.server.metrics import Metrics
from devcluster import testprograms
from devcluster.config import cache_root

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "helm" / "deepcoder-operator" / "files" / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
RULES = FOLDER.parent / "alerts.yaml"
_METRIC = re.compile(r"(?<!:)\b((?:deepcoder|process)_\w+)")
"""Of scraped series; what rules record of them has a colon before."""
_RECORDED = re.compile(r"\b\w+:deepcoder_\w+:\w+")
_OF_ANY_SIGN = {"deepcoder_trainer_reward_mean", "deepcoder_trainer_loss", "deepcoder_trainer_advantage_mean"}
"""Any finite number is a reward. Divergences are of an estimator that is never below 0 (grpo/loss.py)."""
_DOCUMENTED = re.compile(r"`(\w+)`")


def queries(path: Path) -> list[str]:
    """Of every panel, with its variables filled in as Grafana does for All."""
    dashboard = json.loads(path.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    found += [re.sub(r"^label_values\((.*), \w+\)$", r"\1", text) for text in variables]
    return [filled_in(query) for query in found]


def panel_of(page: str, title: str) -> dict[str, Any]:
    dashboard = json.loads((FOLDER / f"deepcoder-{page}.json").read_text())
    (panel,) = (panel for panel in dashboard["panels"] if panel["title"] == title)
    return cast("dict[str, Any]", panel)


def filled_in(query: str, interval: str = "1m") -> str:
    """A query with its variables filled in as Grafana does for All."""
    return re.sub(r"\$(namespace|run|pool)\b", ".*", query).replace("$__rate_interval", interval)


def recording() -> dict[str, str]:
    """The chart's recording rules: expressions by what is recorded."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}


def names(registry: CollectorRegistry) -> set[str]:
    """Of all series that a registry serves, some of them once they have been counted."""
    found: set[str] = set()
    for family in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found


def served() -> set[str]:
    """Names that operator, judges and trainers serve; the trainer's are those of its page, which is tested."""
    assert app is not None  # its import registers the operator's
    judge = Metrics()
    judge.watch(lambda: Capacity(slots=1, busy=0, queued=0, tier=Tier.LANDLOCK, limits={}))
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    trainer = {f"deepcoder_trainer_{name}" for row in rows for name in _DOCUMENTED.findall(row)}
    histograms = {name + suffix for name in trainer for suffix in ("_bucket", "_sum", "_count")}
    return names(REGISTRY) | names(judge.registry) | trainer | histograms


def test_files_are_what_is_described() -> None:
    command = [sys.executable, str(ROOT / "monitoring" / "dashboards.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_metric_is_served_by_somebody(path: Path) -> None:
    known = served()
    asked = {name for query in queries(path) for name in _METRIC.findall(query)}
    assert asked
    assert asked <= known, sorted(asked - known)
    recorded = {name for query in queries(path) for name in _RECORDED.findall(query)}
    assert recorded <= set(recording()), sorted(recorded)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_prometheus_understands_every_query(path: Path, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries(path))]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool = testprograms.prometheus(cache_root()).parent / "promtool"
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_tokens_per_second_are_those_of_a_step_however_long_it_takes() -> None:
    """Trainers count at a step's end: a rate over minutes is a multiple of the truth after a long step, then 0."""
    labels = 'namespace="red",run="r"'
    steps = {  # of 600 s, with 600,000 tokens
        f"tokens_sampled_total{{{labels}}}": 600_000,
        f"tokens_trained_total{{{labels}}}": 600_000,
        f'phase_seconds_sum{{{labels},phase="wait_batch"}}': 200,
        f'phase_seconds_sum{{{labels},phase="train"}}': 400,
        f'phase_seconds_sum{{{labels},phase="forward_backward"}}': 390,
    }
    series = {}
    for name, added in steps.items():
        values = " ".join(f"{added * step}x9" for step in range(1, 7))
        (key, points) = promql.parsed_series(f"deepcoder_trainer_{name}", values)
        series[key] = points
    for target in panel_of("training", "Tokens per second")["targets"]:
        query = filled_in(target["expr"], "4m")
        told = [v for minute in range(60) for v in promql.evaluate(query, series, 60.0 * minute).values()]
        shown = [value for value in told if not math.isnan(value)]
        assert len(shown) >= 5, "each step but the first is seen"
        assert shown == pytest.approx([1000.0] * len(shown))


@pytest.mark.parametrize(("title", "seconds"), [("Seconds by phase", 600), ("Seconds of training", 390)])
def test_what_is_stacked_adds_up_to_a_step_or_to_its_training(title: str, seconds: int, tmp_path: Path) -> None:
    """A trainer tells how long a step trained, and how long each part of that took."""
    phases = {"wait_batch": 200, "train": 400, "pack": 10, "forward_backward": 350, "optimizer": 30}
    panel = panel_of("training", title)
    assert panel["fieldConfig"]["defaults"]["custom"]["stacking"]
    series = [
        {"series": f'deepcoder_trainer_phase_seconds_{what}{{namespace="red",run="r",phase="{phase}"}}', "values": v}
        for phase, took in phases.items()
        for what, v in (("sum", f"0+{took}x20"), ("count", "0+1x20"))
    ]
    (target,) = panel["targets"]
    asked = {
        "expr": f"round(sum({filled_in(target['expr'], '10m')}))",
        "eval_time": "20m",
        "exp_samples": [{"labels": "{}", "value": seconds}],
    }
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": [asked]}]
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    promtool = testprograms.prometheus(cache_root()).parent / "promtool"
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_panel_begins_at_0_unless_what_it_shows_may_lie_below(path: Path) -> None:
    """Grafana cuts off what is below a panel's `min`."""
    for panel in json.loads(path.read_text())["panels"]:
        asked = {name for target in panel["targets"] for name in _METRIC.findall(target["expr"])}
        least = panel["fieldConfig"]["defaults"].get("min")
        assert least == (None if asked & _OF_ANY_SIGN else 0), panel["title"]


@pytest.mark.parametrize(
    ("title", "counter"), [("Failed attempts", "attempt_failures"), ("Warnings", "warnings")], ids=lambda v: v
)
@pytest.mark.parametrize(
    ("values", "with_rules", "without"),
    [("_x30 4x60", 4, 0), ("0x30 4x60", 4, 4), ("4x90", 0, 0)],
    ids=["appears", "rises", "long ago"],
)
def test_failures_are_shown_as_alerts_count_them(
    title: str, counter: str, values: str, with_rules: int, without: int
) -> None:
    """A counter that appears with a count has not increased, but rules record it. Without them the rest is shown."""
    (target,) = panel_of("runs", title)["targets"]
    labels = 'namespace="red",reason="r"'
    series = dict([promql.parsed_series(f"deepcoder_operator_{counter}_total{{{labels}}}", values)])
    # A rule's series may have labels more, which say whose they are.
    ruled = {
        (name, found if name.startswith("deepcoder") else found | {("deepcoder_release", "dc/demo")}): points
        for (name, found), points in promql.recorded(recording(), series, 60).items()
    }
    line = frozenset([("namespace", "red"), ("reason", "r")])
    for installed, expected in ((ruled, with_rules), (series, without)):
        assert promql.evaluate(filled_in(target["expr"]), installed, 3600.0) == {line: pytest.approx(expected, abs=0.3)}


def test_panels_of_a_page_do_not_lie_on_each_other() -> None:
    for path in FILES:
        cells: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            place = panel["gridPos"]
            mine = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not mine & cells, panel["title"]
            assert place["x"] + place["w"] <= 24, panel["title"]
            cells |= mine


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_has_one_name_in_two_namespaces_is_two_lines(path: Path) -> None:
    """Teams take the same names; added up, or under one legend, both their curves say nothing."""
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel["targets"]:
            for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"]):
                by = {label.strip() for label in labels.split(",")}
                assert "namespace" in by or not by & {"run", "pool"}, (panel["title"], target["expr"])
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert "namespace" in shown or not shown & {"run", "pool"}, (panel["title"], target["legendFormat"])
