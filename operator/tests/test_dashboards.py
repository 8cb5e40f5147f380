"""Grafana dashboards: as described, of metrics that somebody serves, in queries that Prometheus understands."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

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
_METRIC = re.compile(r"\b((?:deepcoder|process)_\w+)")
_DOCUMENTED = re.compile(r"`(\w+)`")


def queries(path: Path) -> list[str]:
    """Of every panel, with its variables filled in as Grafana does for All."""
    dashboard = json.loads(path.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    found += [re.sub(r"^label_values\((.*), \w+\)$", r"\1", text) for text in variables]
    return [re.sub(r"\$(namespace|run|pool)\b", ".*", q).replace("$__rate_interval", "1m") for q in found]


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
    path = FOLDER / "deepcoder-training.json"
    (panel,) = (p for p in json.loads(path.read_text())["panels"] if p["title"] == "Tokens per second")
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
    for target in panel["targets"]:
        query = re.sub(r"\$(namespace|run)\b", ".*", target["expr"]).replace("$__rate_interval", "4m")
        told = [v for minute in range(60) for v in promql.evaluate(query, series, 60.0 * minute).values()]
        shown = [value for value in told if not math.isnan(value)]
        assert len(shown) >= 5, "each step but the first is seen"
        assert shown == pytest.approx([1000.0] * len(shown))


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
