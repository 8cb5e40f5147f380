"""`make bench-judge`: CPU time a test costs the judge, beside `python file` and, where given, LiveCodeBench's harness.

Seeded workload of our own: programs that add up numbers for about 1, 20 or 200 ms of CPU, with 5, 15 or 50 tests each.
Every contender runs the same submissions in the same run and has to give the same verdicts, or its cell is void. Ratios
are of CPU time (judge, zygotes and programs together), which other work on the machine disturbs least.

    python benchmarks/judge.py [--quick] [--livecodebench CHECKOUT] [--page docs/benchmarks/judge.md]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deepcoder_contracts.judge import JudgeRequest, Scoring, TestCase, Tier
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.tiers import find_tier
from deepcoder_sandbox.zygote_process import ZygoteConfig

PROGRAM = "n, k = map(int, input().split())\ns = k\nfor i in range(n):\n    s += i * i % 7\nprint(s)\n"
TESTS = (5, 15, 50)
MILLISECONDS = (1, 20, 200)

HARNESS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations_by_problem
out = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for code, inputs, outputs in json.load(sys.stdin):
    sample = {"input_output": json.dumps({"inputs": inputs, "outputs": outputs, "fn_name": None})}
    (results,), _ = evaluate_generations_by_problem(([code], sample, False, 6))
    print(all(r is True for r in results), file=out, flush=True)
"""


@dataclass(frozen=True)
class Cell:
    """One size of workload."""

    tests: int
    milliseconds: int
    submissions: tuple[Submission, ...]
    expected: tuple[bool, ...]

    @property
    def tests_run(self) -> int:
        """Tests that fail-fast judging runs: all of a right program's, one of a wrong one's."""
        return sum(self.tests if right else 1 for right in self.expected)


def iterations_per_ms() -> int:
    """Return how often the program's loop runs in a millisecond here."""
    count, started, total = 200_000, time.process_time(), 0
    for i in range(count):
        total += i * i % 7
    return max(1, int(count / ((time.process_time() - started) * 1000)))


def make_cell(tests: int, milliseconds: int, count: int, per_ms: int, chance: random.Random) -> Cell:
    """Return `count` submissions, one in five of them wrong from its first test on."""
    submissions, expected = [], []
    base = per_ms * milliseconds
    for index in range(count):
        right = index % 5 != 4
        cases = []
        for _ in range(tests):
            n, k = base + chance.randrange(64), chance.randrange(1000)
            answer = k + sum(i * i % 7 for i in range(7)) * (n // 7) + sum(i * i % 7 for i in range(n % 7))
            cases.append(TestCase(input=f"{n} {k}", output=str(answer)))
        code = PROGRAM if right else PROGRAM.replace("s = k", "s = k + 1")
        request = JudgeRequest(id=str(index), code=code, tests=cases, time_limit_s=20)
        submissions.append(Submission(request, tuple(cases)))
        expected.append(right)
    return Cell(tests, milliseconds, tuple(submissions), tuple(expected))


def cpu_seconds(action: Callable[[], list[bool]]) -> tuple[float, list[bool]]:
    """Return the CPU seconds of this process and its reaped children that `action` took, and its answers."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    answers = action()
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True)), answers


def by_judge(config: ZygoteConfig, scoring: Scoring, cell: Cell) -> tuple[float, list[bool]]:
    """Judge the cell; what starting the pool costs is measured apart and taken off."""

    def judge(submissions: tuple[Submission, ...]) -> list[bool]:
        pool = Pool(config, 2, "bench", max_queued=len(cell.submissions) + 1)
        futures = [pool.submit(submission) for submission in submissions]
        answers = [future.result().passed is True for future in futures]
        pool.close(600)
        return answers

    scored = tuple(
        Submission(submission.request.model_copy(update={"scoring": scoring}), submission.tests)
        for submission in cell.submissions
    )
    start_s, _ = cpu_seconds(lambda: judge(()))
    total_s, answers = cpu_seconds(lambda: judge(scored))
    return total_s - start_s, answers


def by_python_file(cell: Cell) -> tuple[float, list[bool]]:
    """Run `python file` for each test, comparing tokens, stopping at the first failure."""
    interpreter = getattr(sys, "_base_executable", sys.executable)

    def run() -> list[bool]:
        answers = []
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "main.py")
            for submission in cell.submissions:
                path.write_text(submission.request.code)
                answers.append(all(passes(path, test) for test in submission.tests))
        return answers

    def passes(path: Path, test: TestCase) -> bool:
        done = subprocess.run([interpreter, str(path)], input=test.input, capture_output=True, text=True, timeout=60)
        return done.returncode == 0 and done.stdout.split() == test.output.split()

    return cpu_seconds(run)


def by_livecodebench(checkout: str, cell: Cell) -> tuple[float, list[bool]]:
    """Run LiveCodeBench's own harness from a checkout, its imports taken off."""

    def run(submissions: tuple[Submission, ...]) -> list[bool]:
        asked = [(s.request.code, [t.input for t in s.tests], [t.output for t in s.tests]) for s in submissions]
        command = [sys.executable, "-c", HARNESS, checkout]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
        return [line == "True" for line in done.stdout.split()]

    start_s, _ = cpu_seconds(lambda: run(()))
    total_s, answers = cpu_seconds(lambda: run(cell.submissions))
    return total_s - start_s, answers


def main() -> int:
    """Run the table, print it, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest cells only")
    parser.add_argument("--livecodebench", default=os.environ.get("DEEPCODER_LIVECODEBENCH"), help="a checkout's path")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    parser.add_argument("--seed", type=int, default=20250408)
    options = parser.parse_args()

    config, findings = find_tier(ZygoteConfig(), Tier.LANDLOCK)
    open_config = ZygoteConfig(tier=Tier.UNCONFINED)
    per_ms, chance = iterations_per_ms(), random.Random(options.seed)
    sizes = [(5, 1), (15, 1)] if options.quick else [(tests, ms) for ms in MILLISECONDS for tests in TESTS]
    rows, figures = [], {}
    for tests, milliseconds in sizes:
        count = max(5, min(40, 600 // (tests * milliseconds)))
        cell = make_cell(tests, milliseconds, count, per_ms, chance)
        contenders = {
            "strict": lambda cell=cell: by_judge(config, Scoring.STRICT, cell),
            "strict, unconfined": lambda cell=cell: by_judge(open_config, Scoring.STRICT, cell),
            "livecodebench": lambda cell=cell: by_judge(config, Scoring.LIVECODEBENCH, cell),
            "python file": lambda cell=cell: by_python_file(cell),
        }
        if options.livecodebench:
            contenders["harness"] = lambda cell=cell: by_livecodebench(options.livecodebench, cell)
        costs = {}
        for name, contender in contenders.items():
            seconds, answers = contender()
            costs[name] = seconds / cell.tests_run * 1000 if tuple(answers) == cell.expected else None
        figures[f"{tests}x{milliseconds}ms"] = costs
        rows.append(_row(tests, milliseconds, costs))
        print(rows[-1], flush=True)
    table = [_HEADER, *rows]
    first = figures["5x1ms"]
    summary: dict[str, object] = {
        "lcb_ratio": _ratio(first.get("harness"), first["livecodebench"]),
        "strict_ratio": _ratio(first.get("harness"), first["strict"]),
        "isolation_cost": _ratio(first["strict"], first["strict, unconfined"]),
        "tier": findings.tier.value,
        "cpu_ms_per_test": figures,
    }
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(_page(table, summary))
    print(json.dumps(summary))
    return 0


_HEADER = (
    "| tests × ms | strict | strict, unconfined | livecodebench | python file | LiveCodeBench's harness |\n"
    "|---|---|---|---|---|---|"
)


def _row(tests: int, milliseconds: int, costs: dict[str, float | None]) -> str:
    plain = costs["python file"]
    shown = [
        "–" if cost is None else f"{cost:.1f} ms ({_ratio(plain, cost)}×)"
        for cost in (
            costs.get(name) for name in ("strict", "strict, unconfined", "livecodebench", "python file", "harness")
        )
    ]
    return f"| {tests} × {milliseconds} | {' | '.join(shown)} |"


def _ratio(slow: float | None, fast: float | None) -> float | None:
    return None if slow is None or fast is None else round(slow / fast, 2)


def _page(table: list[str], summary: dict[str, object]) -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip() or "unknown"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"# The judge's speed, {datetime.date.today().isoformat()}\n\n"
        f"Commit {commit}, {os.cpu_count()} cores ({platform.machine()}), Linux {platform.release()}, Python"
        f" {platform.python_version()}, tier {summary['tier']}, load average {load}. CPU milliseconds a test, judge and"
        " programs together, in brackets how many times cheaper than `python file`; – is void or not measured."
        " `make bench-judge` repeats it.\n\n" + "\n".join(table) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
