"""The dashboard's own metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

REQUESTS = Counter("deepcoder_web_requests_total", "Responses of the dashboard, by status code.", ["code"])
STREAMS = Gauge("deepcoder_web_streams", "Open pages that follow changes.")
