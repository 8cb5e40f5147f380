"""Draws where the demo's time goes, as a chart of its steps over time, from its output.

    make demo 2>&1 | tee build/demo.log
    .venv/bin/python scripts/demo_time.py build/demo.log --picture docs/results/demo-time-DATE.png
    .venv/bin/python scripts/demo_time.py EARLIER.log build/demo.log --picture …       one below the other

A log must end with the demo's table of parts, because each part begins where the previous one ends. Overlapping steps
of devcluster get separate lanes. The run's phases come from its status lines.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_RULE = re.compile(r"^(\S[^─]*?) ─{3,}$")
_DONE = re.compile(r"^\[ *([\d.]+)s\] (.+): done in ([\d.]+) s$")
_STATUS = re.compile(r"^(\d\d):(\d\d):(\d\d) (\w+)(?:, stage (\w+))?")
_PART = re.compile(r"^ (\S.*?) +(\d+) *$")
_BESIDE = "(beside others)"
_TABLE = "Time of each part"
_NAMED_SECONDS = 8
"""Shorter steps have no room for their name."""


@dataclass(frozen=True)
class Step:
    """A step, with its beginning and end in seconds since the demo began."""

    name: str
    began: float
    ended: float


def read(log: Path) -> list[Step]:
    """Steps in the order in which they began."""
    lines = log.read_text(errors="replace").splitlines()
    tables = [i for i, line in enumerate(lines) if line.strip() == _TABLE]
    if not tables:
        raise SystemExit(f"{log} has no table `{_TABLE}`: the demo did not finish")
    parts = [(m[1], int(m[2])) for line in lines[tables[-1] :] if (m := _PART.match(line)) and m[1] != "total"]
    found = [Step(name.removesuffix(_BESIDE).strip(), 0, seconds) for name, seconds in parts if _BESIDE in name]
    clock = 0.0
    for name, seconds in parts:
        if _BESIDE not in name:
            inner = list(_inside(lines, name, clock)) or [Step(name, clock, clock + seconds)]
            found += [step for step in inner if step.ended - step.began > 0]
            clock += seconds
    return sorted(found, key=lambda step: step.began)


def _inside(lines: list[str], part: str, clock: float) -> Iterator[Step]:
    """The steps that devcluster printed, or the phases of the run."""
    rules = {m[1]: i for i, line in enumerate(lines) if (m := _RULE.match(line))}
    start = rules.get(part, len(lines))
    section = lines[start + 1 : min((i for i in rules.values() if i > start), default=len(lines))]
    for line in section:
        if done := _DONE.match(line):
            ended = clock + float(done[1])
            yield Step(done[2], ended - float(done[3]), ended)
    told = [m for line in section if (m := _STATUS.match(line))]
    seconds = [int(m[1]) * 3600 + int(m[2]) * 60 + int(m[3]) for m in told]
    names = [f"{m[4]} {m[5] or ''}".strip() for m in told]
    changes = [i for i in range(len(told)) if i == 0 or names[i] != names[i - 1]]
    for here, following in itertools.pairwise(changes):
        began, ended = (clock + (seconds[i] - seconds[0]) % 86400 for i in (here, following))
        yield Step(names[here], began, ended)


def lanes(steps: list[Step]) -> list[int]:
    """For each step, the lowest free lane."""
    free: list[float] = []
    found = []
    for step in steps:
        lane = next((i for i, until in enumerate(free) if until <= step.began + 0.1), len(free))
        free[lane : lane + 1] = [step.ended]
        found.append(lane)
    return found


def draw(logs: list[Path], picture: Path) -> None:
    """Draw one chart per log, on the same scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    runs = [read(log) for log in logs]
    figure, charts = plt.subplots(
        len(runs), 1, figsize=(14, 2.6 * len(runs)), sharex=True, squeeze=False, layout="constrained"
    )
    for log, steps, (chart,) in zip(logs, runs, charts, strict=True):
        for step, lane in zip(steps, lanes(steps), strict=True):
            length = step.ended - step.began
            color = f"C{sum(map(ord, step.name)) % 10}"
            chart.barh(-lane, length, 0.9, left=step.began, color=color, alpha=0.6, edgecolor="white")
            if length >= _NAMED_SECONDS:
                text = f"{step.name} {length:.0f}"
                chart.text(step.began + length / 2, -lane, text, rotation=90 if length < 60 else 0, fontsize=6,
                           ha="center", va="center", clip_on=True, wrap=True)  # fmt: skip
        chart.set_yticks([])
        chart.set_title(f"{log.stem}: {max(step.ended for step in steps):.0f} s", fontsize=9, loc="left")
    charts[-1][0].set_xlabel("seconds since the demo began, its set-up done")
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Print or draw the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, nargs="+", help="output of the demo")
    parser.add_argument("--picture", type=Path, help="write a PNG")
    options = parser.parse_args()
    if options.picture:
        draw(options.log, options.picture)
        return
    for log in options.log:
        for step in read(log):
            print(f"{step.began:7.1f} {step.ended:7.1f} {step.ended - step.began:6.1f}  {step.name}")


if __name__ == "__main__":
    main()
