"""Every column that the dashboard draws is one that trainers write, by the page that is held to them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERIES = ROOT / "web/src/deepcoder_web/static/js/series.js"
METRICS = ROOT / "docs/metrics.md"


def test_every_column_of_a_chart_is_a_metric_of_the_page() -> None:
    charts = SERIES.read_text().partition("export const CHARTS")[2].partition("];\n")[0]
    drawn = set(re.findall(r'\["([a-z]\w*)", "', charts))
    written = set(re.findall(r"`([a-z]\w*)`", METRICS.read_text()))
    assert "reward_mean" in drawn
    assert drawn <= written, f"no trainer writes {drawn - written}"
