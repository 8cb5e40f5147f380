"""A Codeforces contest in files, as the API answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_contest(folder: Path, name: str = "1", rated: int = 301, **row: Any) -> None:
    """A contest of the hand-computed example, as the API answers; one participant came unrated."""
    handles = [f"h{n}" for n in range(rated)]
    points = [1500] * 32 + [400] * (rated - 32)
    rows = [
        {"party": {"members": [{"handle": h}]}, "points": float(p), "penalty": 0, **row}
        for h, p in zip([*handles, "visitor"], [*points, 0], strict=True)
    ]
    problems = [{"contestId": int(name), "index": "A", "points": 500.0}, {"contestId": int(name), "index": "B"}]
    changes = [{"handle": h, "oldRating": 3000 if h == "h0" else 1500} for h in handles]
    for kind, result in (("standings", {"problems": problems, "rows": rows}), ("ratingChanges", changes)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{name}.json").write_text(json.dumps({"status": "OK", "result": result}))
