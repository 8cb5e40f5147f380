"""Does the dashboard stay smooth with ten thousand steps? The real scripts in Chromium, before a server that plays one.

    make bench-dashboard                        about a minute, one core busy
    python benchmarks/dashboard.py --tiny       seconds, to see that it works: its figures mean nothing

Runs of 1,000 and of 10,000 steps are looked at in turns, each time in a new page: all charts are drawn, the cursor
moves across the first one (all charts follow it), and then one more step is trained.

    load_longest_ms     the longest task of the page while it draws 10,000 steps: at most 1,000
    cursor_longest_ms   the longest task while the cursor moves: at most 100, which is felt as at once
    grow_longest_ms     the longest task as one step is added. No target
    load_ratio          what the page's thread does to draw 10,000 steps, over 1,000: at most 10, as the steps
    cursor_ratio        the same for one move of the cursor. No target

The longest of the rounds is what counts of the longest tasks, of the ratios the median. A task shorter than 50 ms is
not told by the browser, and counts as 0. Headless Chromium draws without a GPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page_head import commit, machine
from playwright.sync_api import Browser, Page, expect, sync_playwright

from devcluster import testprograms
from devcluster.config import cache_root

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "web" / "tests"))

from page_standin import NAMESPACE, TOKEN, Standin, trained

MOST_LOAD_MS, MOST_CURSOR_MS, MOST_LOAD_RATIO = 1000.0, 100.0, 10.0
CHARTS, MOVES = 11, 100
DEADLINE_MS = 120_000
SETTLE_MS = 500
"""Long tasks are told a moment after they end."""

PREPARE = f"""
sessionStorage.setItem("deepcoder-token", "{TOKEN}");
window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration)))
  .observe({{ type: "longtask", buffered: true }});
"""


@dataclass(frozen=True)
class Part:
    """One thing that a page did."""

    longest: float
    """Its longest task in ms, 0 where none took 50."""
    busy: float
    """What the page's thread did in all, in ms."""


@dataclass(frozen=True)
class Look:
    """One page, from its opening on."""

    load: Part
    cursor: Part
    grow: Part


class Watched:
    """A page whose tasks are counted."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable")
        self._before = 0.0

    def _busy(self) -> float:
        found = {m["name"]: m["value"] for m in self._session.send("Performance.getMetrics")["metrics"]}
        return 1000 * float(found["TaskDuration"])

    def part(self) -> Part:
        """What was done since the part before."""
        self.page.wait_for_timeout(SETTLE_MS)
        tasks: list[float] = self.page.evaluate("tasks.splice(0)")
        now = self._busy()
        done, self._before = now - self._before, now
        return Part(max(tasks, default=0.0), done)


def look(browser: Browser, standin: Standin, steps: int) -> Look:
    """Open a run, move over its charts, let it grow."""
    standin.steps["demo"] = trained(0, steps)
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    try:
        context.add_init_script(PREPARE)
        watched = Watched(page := context.new_page())
        page.goto(f"{standin.url}/#/runs/{NAMESPACE}/demo/curves")
        drawn(page, steps)
        expect(page.get_by_text("live", exact=True)).to_be_visible(timeout=DEADLINE_MS)
        load = watched.part()
        box = page.locator(".chart .u-over").first.bounding_box()
        if box is None:
            raise RuntimeError("the first chart has no place on the page")
        for move in range(MOVES):
            page.mouse.move(box["x"] + 5 + (box["width"] - 10) * move / MOVES, box["y"] + box["height"] / 2)
        cursor = watched.part()
        standin.steps["demo"] += trained(steps, 1)
        standin.change()
        drawn(page, steps + 1)
        return Look(load, cursor, watched.part())
    finally:
        context.close()


def drawn(page: Page, steps: int) -> None:
    """Wait until every chart has so many points."""
    expect(page.get_by_text(re.compile(rf", {steps} points to step "))).to_have_count(CHARTS, timeout=DEADLINE_MS)


def measure(small: int, large: int, rounds: int) -> dict[int, list[Look]]:
    """Looks by the number of steps, in turns; the first of each, which warms everything, does not count."""
    looks: dict[int, list[Look]] = {small: [], large: []}
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with Standin().served() as standin, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=testprograms.chromium(cache_root()), args=arguments)
        try:
            for number in range(rounds + 1):
                for steps, found in looks.items():
                    seen = look(browser, standin, steps)
                    if number:
                        found.append(seen)
        finally:
            browser.close()
    return looks


def summarize(small: list[Look], large: list[Look], *, tiny: bool) -> dict[str, Any]:
    """The figures, and which targets were missed."""

    def busy(looks: list[Look], part: str) -> float:
        return statistics.median(getattr(look, part).busy for look in looks)

    figures = {
        "load_longest_ms": max(look.load.longest for look in large),
        "cursor_longest_ms": max(look.cursor.longest for look in large),
        "grow_longest_ms": max(look.grow.longest for look in large),
        "load_ratio": busy(large, "load") / busy(small, "load"),
        "cursor_ratio": busy(large, "cursor") / busy(small, "cursor"),
        "load_busy_ms": busy(large, "load"),
        "move_busy_ms": busy(large, "cursor") / MOVES,
        "grow_busy_ms": busy(large, "grow"),
    }
    missed = {
        "load_longest_ms": figures["load_longest_ms"] > MOST_LOAD_MS,
        "cursor_longest_ms": figures["cursor_longest_ms"] > MOST_CURSOR_MS,
        "load_ratio": figures["load_ratio"] > MOST_LOAD_RATIO,
    }
    return {**figures, "tiny": tiny, "unmet": [] if tiny else [name for name, is_missed in missed.items() if is_missed]}


def table(looks: dict[int, list[Look]]) -> str:
    """Each look."""
    head = "| steps | load: longest | busy | cursor: longest | busy a move | one more step: longest | busy |"
    rows = [
        f"| {steps:,} | {seen.load.longest:.0f} | {seen.load.busy:.0f} | {seen.cursor.longest:.0f} "
        f"| {seen.cursor.busy / MOVES:.1f} | {seen.grow.longest:.0f} | {seen.grow.busy:.0f} |"
        for steps, found in looks.items()
        for seen in found
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def page_text(code: str, browser: str, looks: dict[int, list[Look]], figures: dict[str, Any]) -> str:
    """The dated page."""
    meaning = "**Toy sizes: these figures mean nothing.**\n\n" if figures["tiny"] else ""
    small, large = looks
    load, cursor, grow = (figures[f"{part}_longest_ms"] for part in ("load", "cursor", "grow"))
    return f"""# The dashboard's curves, {datetime.date.today().isoformat()}

Commit {code}, {machine()}; {browser}, headless and without a GPU.
`make bench-dashboard` repeats it, `benchmarks/dashboard.py` says what is measured.

{meaning}Eleven charts with all their lines, of runs of {small:,} and {large:,} steps; the server is played on the
same machine.

| figure | measured | target |
|---|---|---|
| longest task while {large:,} steps are drawn (`load_longest_ms`) | {load:.0f} ms | at most {MOST_LOAD_MS:,.0f} |
| longest task while the cursor moves (`cursor_longest_ms`) | {cursor:.0f} ms | at most {MOST_CURSOR_MS:.0f} |
| longest task as a step is added (`grow_longest_ms`) | {grow:.0f} ms | none |
| drawing {large:,} steps over {small:,} (`load_ratio`) | {figures["load_ratio"]:.1f} | at most {MOST_LOAD_RATIO:.0f} |
| a move of the cursor over {large:,} steps over {small:,} (`cursor_ratio`) | {figures["cursor_ratio"]:.1f} | none |

{table(looks)}

In milliseconds. "Busy" is all that the page's thread did. A task under 50 ms is not told by the browser and
stands as 0.

Missed: {", ".join(figures["unmet"]) or "nothing"}.
"""


def main() -> int:
    """Measure, print the table, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few steps and one round, to see that it works")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    options = parser.parse_args()
    code = commit()
    looks = measure(50, 100, 1) if options.tiny else measure(1_000, 10_000, 5)
    small, large = looks.values()
    figures = summarize(small, large, tiny=options.tiny)
    print(table(looks))
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        version = subprocess.run(
            [str(testprograms.chromium(cache_root())), "--version"], capture_output=True, text=True, check=False
        ).stdout.strip()
        options.page.write_text(page_text(code, version or "Chromium", looks, figures))
    print(json.dumps(figures))
    return 1 if figures["unmet"] else 0


if __name__ == "__main__":
    sys.exit(main())
