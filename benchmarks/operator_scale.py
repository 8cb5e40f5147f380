"""What the operator costs with up to a thousand runs, and how fast it is: `make bench-operator`.

Real API, etcd and S3 servers; the operator as a process of its own under the chart's ServiceAccount; KubeRay, kubelets
and trainers played by a third process (`operator_standin.py`), so pods are objects that nobody runs. Ten tenants with
a namespace, a Secret and a pool each. In turn:

1. Runs are applied at a fixed rate, whatever becomes of those before (open loop): the time from each POST to its RayJob
   on a watch, S3's checks included, and the operator's CPU time up to 10, 100, 300 and 1,000 runs that are Running;
   less what passes that find nothing to do cost, and by the writes, it is that of a pass that writes or makes a thing.
   Also the API server's CPU time, and what the operator asked it for, by its audit log.
2. Nothing happens: no run is written.
3. Every run is labelled three times over: the CPU time of passes that find nothing to do.
4. Every head reports each five seconds, a step further each time (`--step`): CPU time and writes of statuses.
5. kill -9 and a new start: the time until all runs are adopted; again no run is written, and no RayJob made.

Exit status 1: a figure is beyond its bound (`unmet` in the last line, which is one JSON object); those that are not
measured, such as `adopt_1000_seconds` with another number of runs, are `unmeasured` there. A figure that was taken
beside other work on the machine says more about that than about the operator: the page gives the load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import operator_page
from operator_world import World, beats, run_name, tenant, world
from page_head import commit

from deepcoder_operator.kube.resources import RAYJOBS, RUNS

STEPS = (10, 100, 300, 1000)
WARM = 3
"""Runs before the first that counts: what is imported and connected once is not a run's cost."""

GROWTH_PERCENT = 400
"""By how much servers' heaps grow before they are looked through for garbage (GOGC). Go's own 100 takes another quarter
of the API server's time, which the operator lacks where both share the cores, as here and nowhere else."""

_LABELLING = 16


@dataclass
class Growth:
    """From no run to all of them."""

    seconds: list[float] = field(default_factory=list)
    """From POST to RayJob, for each run."""

    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """Runs that are Running; the operator's CPU seconds and the wall seconds until then."""

    server_cpu: float = 0.0
    """CPU seconds of the API server until all runs are Running."""

    requests: Counter[str] = field(default_factory=Counter)
    """The operator's requests to the API server until then, by verb and kind."""


async def grow(w: World, runs: int, rate: float) -> Growth:
    """Apply all runs at a rate."""
    made, sent = Growth(), {}
    steps = [s for s in STEPS if s < runs] + [runs]
    for index in range(WARM):
        await w.apply_run(index)
    await w.until("the first runs are Running", lambda: w.running(WARM))
    cpu, began = w.cpu_seconds, time.monotonic()
    server_cpu, requests = w.server_cpu_seconds, w.requests()

    async def apply(index: int) -> None:
        sent[index] = await w.apply_run(index)

    async with asyncio.TaskGroup() as group:
        done = 0
        for step in steps:
            start = time.monotonic()
            for n in range(step - done):
                await asyncio.sleep(max(0.0, start + n / rate - time.monotonic()))
                group.create_task(apply(WARM + done + n))
            done = step
            await w.until(f"{step} runs are Running", lambda: w.running(WARM + done))  # noqa: B023
            made.curve.append((step, w.cpu_seconds - cpu, time.monotonic() - began))
    made.server_cpu, made.requests = w.server_cpu_seconds - server_cpu, w.requests() - requests
    made.seconds = [w.rayjobs[tenant(i), run_name(i)] - at for i, at in sorted(sent.items())]
    return made


async def rest(w: World, seconds: float) -> tuple[int, float, float]:
    """Runs that are written while nothing happens; CPU seconds in a second of the operator and of the API server."""
    before = await w.versions()
    cpu, server_cpu, began = w.cpu_seconds, w.server_cpu_seconds, time.monotonic()
    await asyncio.sleep(seconds)
    spent = time.monotonic() - began
    used, served = (w.cpu_seconds - cpu) / spent, (w.server_cpu_seconds - server_cpu) / spent
    after = await w.versions()
    return sum(after[k] != v for k, v in before.items()), used, served


async def label(w: World, runs: int, times: int, idle: float, pause: float) -> tuple[float, int]:
    """CPU milliseconds of a pass that finds nothing to do, and how many passes there were."""

    async def passes() -> float:
        return (await w.metrics()).get('deepcoder_operator_passes_total{result="ok"}', 0)

    limit = asyncio.Semaphore(_LABELLING)

    async def touch(index: int, turn: int) -> None:
        async with limit:
            await w.kube.patch(RUNS, tenant(index), run_name(index), {"metadata": {"labels": {"turn": str(turn)}}})

    first, cpu, began = await passes(), w.cpu_seconds, time.monotonic()
    for turn in range(times):
        await asyncio.gather(*(touch(index, turn) for index in range(runs)))

        async def looked(least: int = (turn + 1) * runs) -> bool:
            return await passes() - first >= least

        await w.until(f"{runs} labels are seen", looked, every=pause)  # seldom: each question is an answer's cost
    used = w.cpu_seconds - cpu - idle * (time.monotonic() - began)
    count = int(await passes() - first)
    return 1000 * used / max(count, 1), count


async def adopt(w: World, runs: int, pause: float) -> tuple[float, float, int]:
    """Seconds from a start after kill -9 until all runs are counted and it is ready, and the operator's CPU seconds;
    runs written by then."""
    await w.kill_operator()
    before: dict[tuple[str, str], str] = {}

    async def settled() -> bool:  # the API server still carries out what the killed process had asked for
        known = dict(before)
        before.update(await w.versions())
        return before == known

    await w.until("nothing is written that the killed operator had sent", settled, every=1.0)
    began = time.monotonic()
    await w.start_operator()

    async def adopted() -> bool:
        counted = sum(v for k, v in (await w.metrics()).items() if k.startswith("deepcoder_operator_runs{"))
        return counted == runs and await w.ready()

    await w.until(f"{runs} runs are adopted", adopted, every=0.5)
    seconds, cpu = time.monotonic() - began, w.cpu_seconds
    await asyncio.sleep(pause)
    after = await w.versions()
    return seconds, cpu, sum(after[k] != v for k, v in before.items())


def exponent(curve: Sequence[tuple[int, float, float]]) -> float:
    """Of CPU time ~ runs ^ exponent, by least squares of the logarithms: 1 is linear."""
    points = [(math.log(n), math.log(cpu)) for n, cpu, _ in curve if cpu > 0]
    mean_x, mean_y = (sum(c) / len(points) for c in zip(*points, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return over / sum((x - mean_x) ** 2 for x, _ in points)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def measure(
    runs: int,
    rate: float,
    rest_seconds: float,
    beat_seconds: float,
    directory: Path,
    step_seconds: float = 5.0,
    *,
    pause: float = 5.0,
    growth_percent: int = GROWTH_PERCENT,
) -> dict[str, Any]:
    """All of it; `pause` seconds after each part for what it has left to do."""
    figures: dict[str, Any] = {"runs": runs, "rate": rate, "server_heap_growth_percent": growth_percent}

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    async with world(directory, growth_percent) as w:
        await w.start_operator()
        kuberay = await w.standin()
        try:
            await w.until("the operator is ready", w.ready)
            grown, total = await grow(w, runs, rate), runs + WARM
            figures["apply_to_rayjob_p50_s"] = percentile(grown.seconds, 0.5)
            figures["apply_to_rayjob_p99_s"] = percentile(grown.seconds, 0.99)
            figures["curve"] = grown.curve
            figures["curve_exponent"] = exponent(grown.curve)
            figures["cpu_ms_per_run"] = 1000 * grown.curve[-1][1] / runs
            figures["server_cpu_ms_per_run"] = 1000 * grown.server_cpu / runs
            figures["requests_per_run"] = {k: round(n / runs, 2) for k, n in grown.requests.most_common()}
            figures["rss_mb_grown"] = w.megabytes("VmHWM")
            counted = await w.metrics()
            for name, series in (("api_requests_per_run", "deepcoder_operator_api_requests_total"),
                                 ("s3_requests_per_run", "deepcoder_operator_storage_requests_total"),
                                 ("passes_per_run", "deepcoder_operator_passes_total"),
                                 ("status_writes_per_run", "deepcoder_operator_status_writes_total")):  # fmt: skip
                figures[name] = sum(v for k, v in counted.items() if k.split("{")[0] == series) / total
            say(f"{runs} runs are Running: {json.dumps(figures)}")
            await asyncio.sleep(pause)
            figures["written_at_rest"], idle, served = await rest(w, rest_seconds)
            figures["idle_cpu_share"], figures["server_idle_cpu_share"] = idle, served
            figures["cpu_ms_per_reconcile"], figures["passes_labelled"] = await label(w, total, 3, idle, pause)
            say(f"labelled: {figures['cpu_ms_per_reconcile']:.2f} ms a pass")
            # What is made is written first, so a pass that writes no status has found nothing to do.
            nothing = max(0.0, figures["passes_per_run"] - figures["status_writes_per_run"])
            making = figures["cpu_ms_per_run"] - nothing * figures["cpu_ms_per_reconcile"]
            figures["cpu_ms_per_create"] = making / figures["status_writes_per_run"]
            if beat_seconds:
                figures |= await _beats(w, total, beat_seconds, step_seconds)
                say(f"heads have reported: {figures['beats']}")
            adopted = await adopt(w, total, pause)
            figures["adopt_seconds"], figures["adopt_cpu_seconds"], figures["written_on_adoption"] = adopted
            figures["rayjobs_too_many"] = len((await w.kube.list(RAYJOBS, keep=lambda o: {}))[0]) - total
            figures["rss_mb_adopted"] = w.megabytes("VmHWM")
            figures["rss_mb_adopted_now"] = w.megabytes("VmRSS")
        finally:
            kuberay.terminate()
            await kuberay.wait()
        figures["operator_ended"] = w.ended
    figures["rss_mb"] = max(figures["rss_mb_grown"], figures["rss_mb_adopted"], figures.get("rss_mb_beats", 0.0))
    return figures


async def _beats(w: World, runs: int, seconds: float, step_seconds: float) -> dict[str, Any]:
    async def writes() -> float:
        return (await w.metrics()).get("deepcoder_operator_status_writes_total", 0)

    first, lives = await writes(), w.ended
    cpu, server_cpu, began = w.cpu_seconds, w.server_cpu_seconds, time.monotonic()
    told = await beats(w, seconds, step_seconds)
    spent = time.monotonic() - began
    figures = {
        "beats": told,
        "beats_cpu_share": (w.cpu_seconds - cpu) / spent,
        "server_beats_cpu_share": (w.server_cpu_seconds - server_cpu) / spent,
        "rss_mb_beats": w.megabytes("VmHWM"),
    }
    if w.ended == lives:  # a process that began anew counts from 0
        figures["beats_writes_per_run"] = (await writes() - first) / runs
    return figures


def main() -> int:
    """Measure, print the table, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=5.0, help="runs applied a second")
    parser.add_argument("--rest", type=float, default=30.0, help="seconds in which nothing happens")
    parser.add_argument("--beats", type=float, default=60.0, help="seconds in which heads report; 0: none")
    parser.add_argument("--step", type=float, default=5.0, help="seconds that a step of a head takes")
    parser.add_argument("--growth", type=int, default=GROWTH_PERCENT, help="GOGC of the servers; Go's own is 100")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    options = parser.parse_args()
    code = commit()
    with tempfile.TemporaryDirectory(prefix="deepcoder-operator-") as directory:
        place, o = Path(directory), options
        figures = asyncio.run(measure(o.runs, o.rate, o.rest, o.beats, place, o.step, growth_percent=o.growth))
    found = operator_page.judge(figures)
    print(operator_page.table(found))
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(operator_page.page(found, code))
    print(json.dumps(found))
    return 1 if found["unmet"] else 0


if __name__ == "__main__":
    sys.exit(main())
