"""Writes the page and the picture of a soak: one row per run, with what was killed during it and left after it.

Everything on the page comes from the rows. Raises ImportError without matplotlib.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from soak_blows import Blow
from soak_counts import Counts

TITLES = {
    "memory_mb": "memory, MiB",
    "descriptors": "descriptors",
    "processes": "processes",
    "cgroups": "cgroups",
    "mounts": "mounts",
    "api_objects": "API objects",
    "ray_processes": "Ray's processes",
    "sandbox_processes": "sandboxes' processes",
    "unfinished_uploads": "unfinished uploads",
}


@dataclass(frozen=True)
class Row:
    """One run of the soak, and counts of the idle cluster after it."""

    run: str
    seconds: float
    """From its creation to Complete."""
    attempts: int
    links: int
    """Number of manifests that `verify --deep` checked."""
    objects: int
    """Objects below its folder in the bucket."""
    objects_mb: float
    blows: Sequence[Blow]
    after: Counts


def write(page: Path, rows: Sequence[Row], missed: int, machine: str) -> None:
    """Write the page, and a picture of the same name next to it."""
    picture = page.with_suffix(".png")
    _draw(rows, picture)
    struck = Counter(blow.target for row in rows for blow in row.blows)
    text = [
        f"# {len(rows)} runs of the demo in a row while everything is killed, {page.stem.removeprefix('soak-')}",
        "",
        f"`tests/e2e/test_e2e_soak.py`, {machine}. There was one cluster, and each run began when the previous one was "
        f"gone. Killed at random meanwhile, without a grace period: {_told(struck)}. {missed} more attempts to kill "
        "found nothing.",
        "",
        "Every run became Complete, and the chain of every checkpoint was verified with `--deep`.",
        "",
        "| run | s | attempts | what was killed | links verified | objects in S3 | MB |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.run} | {row.seconds:.0f} | {row.attempts} | {_told(Counter(b.target for b in row.blows))} "
            f"| {row.links} | {row.objects} | {row.objects_mb} |"
            for row in rows
        ),
        "",
        "What the idle cluster held after each run was gone (all processes of the node and its pods):",
        "",
        "| after | " + " | ".join(TITLES[field.name] for field in fields(Counts)) + " |",
        "|---" * (1 + len(fields(Counts))) + "|",
        *(
            f"| {row.run} | " + " | ".join(str(getattr(row.after, field.name)) for field in fields(Counts)) + " |"
            for row in rows
        ),
        "",
        f"![What the idle cluster held after each run]({picture.name})",
        "",
    ]
    page.write_text("\n".join(text))


def _told(struck: Counter[str]) -> str:
    return ", ".join(f"{target} {count}" for target, count in sorted(struck.items())) or "nothing"


def _draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    shown = ("memory_mb", "descriptors", "processes", "cgroups", "mounts", "api_objects")
    at = range(1, len(rows) + 1)
    with mpl.rc_context(style | {"grid.color": "#e5e7eb"}):
        sheet, axes = plt.subplots(3, 3, figsize=(10, 7), layout="constrained")
        panels: list[tuple[str, list[float]]] = [
            ("seconds of the run", [row.seconds for row in rows]),
            ("blows during the run", [float(len(row.blows)) for row in rows]),
            ("objects in S3 of the run", [float(row.objects) for row in rows]),
            *((TITLES[name], [float(getattr(row.after, name)) for row in rows]) for name in shown),
        ]
        for axis, (title, values) in zip(axes.flat, panels, strict=True):
            axis.plot(at, values, marker="o", markersize=4, color="#2563eb", linewidth=1.5)
            axis.set_title(title, loc="left", fontsize=10)
            axis.set_xticks(list(at))
            axis.set_ylim(bottom=0)
        sheet.suptitle("Run by run: what it took, and what was left after it", x=0.01, ha="left", fontweight="bold")
        sheet.savefig(path, dpi=100)
        plt.close(sheet)
