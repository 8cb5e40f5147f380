"""Alerts of several releases of the chart that one Prometheus scrapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from alert_cases import CASES, promtool, unit_test, write_unit_tests
from chart_render import EVERYTHING, only, run_helm

RELEASE = "deepcoder_release"
"""A label of what Prometheus scrapes by the chart's monitor."""


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
    for alert, (firing, silent, at) in CASES.items():
        groups = [{"name": name, "rules": _of(objects, alert)} for name, objects in rendered.items()]
        one = _labelled(firing, "dc/demo") | _labelled(silent, "dc/other")
        tests = [
            unit_test(
                f"{alert} of {fired_of}",
                series,
                f'count by ({RELEASE}) (ALERTS{{alertname="{alert}",alertstate="firing"}})',
                at,
                [f'{{{RELEASE}="{name}"}}' for name in fired_of],
            )
            for series, fired_of in ((one, ["dc/demo"]), (firing, ["dc/demo", "dc/other"]))
        ]
        write_unit_tests(tmp_path, alert, groups, tests)
    promtool(tmp_path, "test", "rules", *(f"{alert}-tests.yaml" for alert in CASES))


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
