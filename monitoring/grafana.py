"""The parts of a dashboard, and their JSON for Grafana. Panels fill rows from left to right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_COLUMNS = 24
_HEIGHT = 8


@dataclass(frozen=True)
class Panel:
    """One chart: its lines, each a query with a legend."""

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    description: str = ""
    width: int = 12
    kind: str = "timeseries"
    stacked: bool = False
    signed: bool = False
    """Whether values may be below 0. Otherwise the axis begins there, and Grafana would cut them off."""


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the page, filled from a label of a metric."""

    name: str
    label: str
    metric: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard: its panels in reading order."""

    uid: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[Variable, ...] = field(default=())


def rendered(dashboard: Dashboard) -> dict[str, Any]:
    """The JSON that Grafana imports."""
    panels, x, y, tallest = [], 0, 0, 0
    for number, panel in enumerate(dashboard.panels, 1):
        height = 4 if panel.kind == "stat" else _HEIGHT
        if x + panel.width > _COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        panels.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height}))
        x, tallest = x + panel.width, max(tallest, height)
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["deepcoder"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [_LINK],
        "annotations": {"list": []},
        "templating": {"list": [_DATASOURCE, *(_variable(v) for v in dashboard.variables)]},
        "panels": panels,
    }


_LINK = {
    "type": "dashboards",
    "tags": ["deepcoder"],
    "title": "DeepCoder",
    "icon": "external link",
    "tooltip": "",
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
}
_CHART = {
    "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
    "tooltip": {"mode": "multi", "sort": "none"},
}
_FIGURE = {
    "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
    "colorMode": "value",
    "graphMode": "area",
    "justifyMode": "auto",
    "orientation": "auto",
    "textMode": "auto",
    "wideLayout": True,
    "showPercentChange": False,
    "percentChangeColorMode": "standard",
}
"""Complete, as Grafana itself saves them, so that nothing depends on a release's defaults."""
_DATASOURCE = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": f"label_values({variable.metric}, {variable.label})", "refId": variable.name},
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 20 if panel.stacked else 5, "spanNulls": True}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    defaults: dict[str, Any] = {"unit": panel.unit} | ({} if panel.signed else {"min": 0})
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {
            "defaults": defaults | ({} if panel.kind == "stat" else {"custom": custom}),
            "overrides": [],
        },
        "options": _CHART if panel.kind == "timeseries" else _FIGURE,
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(panel.lines)
        ],
    }
