"""What the dashboard counts of itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

REQUESTS = Counter("deepcoder_web_requests_total", "Answers of the dashboard by status code.", ["code"])
STREAMS = Gauge("deepcoder_web_streams", "Pages that are open and follow changes.")
