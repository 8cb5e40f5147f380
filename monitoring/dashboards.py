"""Grafana dashboards from a short description: what is asked, in which unit, under which title.

`python monitoring/dashboards.py` writes them below the chart, `--check` fails where a file differs. A panel is one
question with an answer in PromQL; a test tries each against a real Prometheus, so a metric that is renamed is noticed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from grafana import rendered
from judges import JUDGES
from runs import RUNS
from training import TRAINING

FOLDER = Path(__file__).resolve().parents[1] / "helm" / "deepcoder-operator" / "files" / "dashboards"
DASHBOARDS = (RUNS, TRAINING, JUDGES)


def main() -> int:
    """Write them, or say which differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    check = parser.parse_args().check
    stale = []
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.uid}.json"
        text = json.dumps(rendered(dashboard), indent=1) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.name)
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and stale:
        print(f"differ from monitoring/dashboards.py: {', '.join(stale)}; run make generate", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
