"""Metrics of the progress server."""

from __future__ import annotations

from prometheus_client import Counter

REPORTS = Counter(
    "deepcoder_operator_progress_reports_total", "Progress reports, by HTTP status of the reply.", ["code"]
)
for _code in (200, 401, 403, 429, 503):
    REPORTS.labels(code=str(_code))
