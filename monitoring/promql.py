"""Parts of queries that several dashboards use: selectors by dashboard variables, rates, quantiles.

A wrong query would fail only in Grafana, so a test runs each panel's queries against a real Prometheus.
"""

from __future__ import annotations

RUN = 'namespace=~"$namespace",run=~"$run"'
POOL = 'namespace=~"$namespace",pool=~"$pool"'
NAMESPACE = 'namespace=~"$namespace"'
OPERATOR = "deepcoder_operator_"


def of_run(metric: str, extra: str = "") -> str:
    """Return a trainer's metric of the chosen runs; `extra` matchers begin with a comma."""
    return f"deepcoder_trainer_{metric}{{{RUN}{extra}}}"


def rate(metric: str, by: str, extra: str = "") -> str:
    """Return the rate of a counter per second, summed by labels."""
    selector = f"{{{extra}}}" if extra else ""
    return f"sum by ({by}) (rate({metric}{selector}[$__rate_interval]))"


def all_namespaces(by: str, metric: str) -> str:
    """Return a gauge of the operator, summed over the chosen namespaces; only one of several replicas knows it."""
    return f"sum by ({by}) (max by (namespace, {by}) ({OPERATOR}{metric}{{{NAMESPACE}}}))"


def of_the_last_hour(counter: str) -> str:
    """Return the increase of a counter of the operator, by namespace and reason. Rules of the chart's alerts record it:
    increase() does not see what a series has counted when it appears. Without these rules the rest is shown."""
    recorded = f"max by (namespace, reason) (namespace_reason:{OPERATOR}{counter}:increase1h{{{NAMESPACE}}})"
    return f"{recorded} or sum by (namespace, reason) (increase({OPERATOR}{counter}_total{{{NAMESPACE}}}[1h]))"


def quantile(q: str, metric: str, selector: str, by: str = "") -> str:
    """Return a quantile of a histogram, by labels if `by` names some."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"
