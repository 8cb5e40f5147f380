"""Generates the Grafana dashboards from short descriptions of their panels: query, unit and title.

`python monitoring/dashboards.py` writes them into the chart; `--check` fails if a file differs. A test runs each
panel's query against a real Prometheus, so it notices a renamed metric.
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
    """Write the dashboards, or report those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
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
