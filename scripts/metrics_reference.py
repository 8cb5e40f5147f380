"""The reference of the services' metrics, docs/service-metrics.md, from the metrics that they register.

`python scripts/metrics_reference.py` writes it, `--check` fails where it differs. A trainer's metrics have a page of
their own, written by hand, since what they mean takes more than a sentence each; a test holds it.
"""

from __future__ import annotations

import sys

import pages
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

import deepcoder_operator.app
import deepcoder_web.app
from deepcoder_contracts.judge import Capacity, Tier
from deepcoder_sandbox.server.metrics import Metrics

PAGE = pages.DOCS / "service-metrics.md"
SERVICES = {
    "deepcoder_operator_": ("The operator", "Port 8080 of its pod, `/metrics`."),
    "deepcoder_sandbox_": ("Judges", "Port 8080 of each judge, `/metrics`, without a token."),
    "deepcoder_web_": ("The dashboard", "Port 8091 of its pod, `/metrics`."),
}
IMPORTED = (deepcoder_operator.app, deepcoder_web.app)
"""Metrics are registered when modules are imported."""


def judge() -> CollectorRegistry:
    """Of a judge that has begun to serve."""
    metrics = Metrics()
    metrics.watch(lambda: Capacity(slots=1, busy=0, queued=0, tier=Tier.LANDLOCK, limits={}))
    metrics.watch_memory(dict)
    return metrics.registry


def rows(registry: CollectorRegistry, prefix: str) -> list[str]:
    """A line for each metric with the prefix, by name."""
    found = {m._name: m for m in registry._collector_to_names if isinstance(m, MetricWrapperBase)}
    lines = []
    for name, metric in sorted(found.items()):
        if name.startswith(prefix):
            shown = f"{name}_total" if metric._type == "counter" else name
            labels = ", ".join(metric._labelnames)
            lines.append(
                f"| `{shown}` | {metric._type} | {labels} | {pages.escaped(metric._documentation.rstrip('.'))} |"
            )
    return lines


def page() -> str:
    """The page."""
    lines = [
        "# Metrics of operator, judges and dashboard",
        "",
        "Made from what they register by `make generate`; a trainer's are in [Metrics](metrics.md), who scrapes them",
        "and what to look at in [Monitoring](monitoring.md). Each serves its process's own (`process_…`), too.",
    ]
    for prefix, (title, words) in SERVICES.items():
        registry = judge() if prefix == "deepcoder_sandbox_" else REGISTRY
        lines += ["", f"## {title}", "", words, "", "| metric | type | labels | what |", "|---|---|---|---|"]
        lines += rows(registry, prefix)
    return pages.joined(lines)


if __name__ == "__main__":
    sys.exit(pages.main(PAGE, page(), __doc__))
