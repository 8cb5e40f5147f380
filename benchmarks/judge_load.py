"""The judge as its clients meet it: over HTTP, what it adds to a test, and what it does when all come at once.

Overhead of a test: the time from sending a submission to having its answer, less the CPU seconds that the program
itself used, divided by its tests; one client, one submission at a time, so that nothing waits. Throughput: a thousand
submissions at once from clients that obey Retry-After. Each cell is void where a verdict is not the one that was meant.
Other work on the machine would be counted as the judge's: each cell is measured several times over, its quietest round
is shown, and where it may the benchmark raises its own priority.

    python benchmarks/judge_load.py [--quick] [--page docs/results/judge_load.md]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sandbox_image" / "tests"))

from judge_servers import PatientClients, Server, submission  # shared with the tests under load
from page_head import commit, machine

WORKING = "import time\nn = int(input())\nwhile time.process_time() < {seconds}:\n    pass\nprint(n)\n"
SCORINGS = ("strict", "livecodebench")
CELLS = ((1, 0), (5, 0), (15, 0), (5, 20), (15, 20))
"""Tests a submission, and milliseconds of CPU a test (0: it just reads and prints)."""

GIVE_UP_S = 280
ROUNDS = 3
PRIORITY = -10


def make(name: str, tests: int, milliseconds: int, scoring: str) -> dict:
    """Return a submission that passes."""
    code = WORKING.format(seconds=milliseconds / 1000) if milliseconds else "print(int(input()))"
    return submission(name, code, *((str(n), str(n)) for n in range(tests)), scoring=scoring)


async def overhead(
    server: Server, name: str, tests: int, milliseconds: int, scoring: str, count: int
) -> list[float] | None:
    """Return milliseconds of overhead a test, one figure a submission; None where a verdict is wrong."""
    figures = []
    clients = PatientClients(server, GIVE_UP_S)
    async with server.session() as session:
        for number in range(count + 5):
            body = make(f"{name}-{number}", tests, milliseconds, scoring)
            started = time.perf_counter()
            answer = await clients.judge(session, body)
            took_s = time.perf_counter() - started
            if not answer["passed"]:
                return None
            used_s = sum(verdict["seconds"] for verdict in answer["verdicts"])
            figures.append((took_s - used_s) / tests * 1000)
    return figures[5:]  # the first ones warm it up


async def all_at_once(server: Server, count: int, tests: int) -> dict[str, float] | None:
    """Return what came of `count` submissions at once; None where a verdict is wrong."""
    bodies = [make(f"once-{number}", tests, 0, SCORINGS[number % 2]) for number in range(count)]
    clients = PatientClients(server, GIVE_UP_S)
    started = time.perf_counter()
    answers = await clients.judge_all(bodies)
    seconds = time.perf_counter() - started
    if not all(answer["passed"] for answer in answers):
        return None
    return {
        "submissions": count,
        "tests_a_submission": tests,
        "seconds": round(seconds, 2),
        "submissions_per_s": round(count / seconds, 1),
        "tests_per_s": round(count * tests / seconds, 1),
        "turned_away": clients.met["429"],
        "lost": clients.met["lost"],
        "errors": clients.met["error"],
        "peak_server_mb": round(server.memory_mb("VmHWM"), 1),
    }


async def measure(quick: bool) -> tuple[list[str], dict[str, object]]:
    """Return the rows of the table, printed as they come, and the figures."""
    rows: list[str] = []
    figures: dict[str, dict[str, float] | None] = {}
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), "--slots", "1") as server:
        for scoring in SCORINGS:
            for tests, milliseconds in CELLS[:2] if quick else CELLS:
                count = 30 if quick else 100 if not milliseconds else 30
                rounds = [
                    _quantiles(
                        await overhead(
                            server, f"{scoring}-{tests}-{milliseconds}-{number}", tests, milliseconds, scoring, count
                        )
                    )
                    for number in range(ROUNDS)
                ]
                name = f"{scoring} {tests}x{milliseconds}ms"
                figures[name] = None if None in rounds else min(rounds, key=lambda each: each["p95"])
                rows.append(_row(scoring, tests, milliseconds, figures[name]))
                print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), "--slots", str(cores)) as server:
        idle_mb = round(server.memory_mb(), 1)
        once = await all_at_once(server, 100 if quick else 1000, 3)
    tier = next(line for line in server.log if "listening" in line).rsplit("tier ", 1)[1].split('"')[0].strip()
    worst = [each["p95"] for each in figures.values() if each is not None]
    summary: dict[str, object] = {
        "p95_overhead_ms": max(worst) if len(worst) == len(figures) else None,
        "tier": tier,
        "overhead_ms": figures,
        "all_at_once": once,
        "idle_server_mb": idle_mb,
    }
    return rows, summary


def _quantiles(values: list[float] | None) -> dict[str, float] | None:
    if values is None:
        return None
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "p99": round(cuts[98], 2)}


_HEADER = "| scoring | tests × ms | p50 ms | p95 ms | p99 ms |\n|---|---|---|---|---|"


def _row(scoring: str, tests: int, milliseconds: int, figures: dict[str, float] | None) -> str:
    shown = ["–"] * 3 if figures is None else [f"{figures[name]:.2f}" for name in ("p50", "p95", "p99")]
    return f"| {scoring} | {tests} × {milliseconds} | {' | '.join(shown)} |"


def _once_in_words(once: dict[str, float] | None) -> str:
    if once is None:
        return "All at once: void, some verdict was not the one that was meant."
    return (
        f"{once['submissions']} submissions of {once['tests_a_submission']} tests at once: {once['seconds']} s,"
        f" {once['submissions_per_s']} submissions and {once['tests_per_s']} tests a second; turned away with 429 and"
        f" back {once['turned_away']} times, {once['lost']} connections lost, {once['errors']} answers of `error`;"
        f" the server's own process had {once['peak_server_mb']} MB at most."
    )


def _page(rows: list[str], summary: dict[str, object]) -> str:
    return (
        f"# The judge under load, {datetime.date.today().isoformat()}\n\n"
        f"Commit {commit()}, tier {summary['tier']}, {machine()}."
        " `make bench-judge_load` repeats it.\n\n"
        "Overhead of a test: the time from sending a submission to having its answer, over HTTP, less the CPU time that"
        " the program itself used, divided by its tests; one submission at a time, the quietest of"
        f" {ROUNDS} rounds.\n\n" + "\n".join([_HEADER, *rows]) + f"\n\n{_once_in_words(summary['all_at_once'])}\n"
    )


def main() -> int:
    """Measure, print the table, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest cells and a hundred at once only")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    options = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    print(_HEADER, flush=True)
    rows, summary = asyncio.run(measure(options.quick))
    print(_once_in_words(summary["all_at_once"]))
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(_page(rows, summary))
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
