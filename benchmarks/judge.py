"""`make bench-judge`: CPU time a test costs the judge, beside `python file` and, where given, LiveCodeBench's harness.

Seeded workload of our own: programs that add up numbers for about 1, 20 or 200 ms of CPU, with 5, 15 or 50 tests each,
one in five of them wrong from its first test on. Every contender judges the same submissions, in the same run and in
turns, and has to give the same verdicts, or its cell is void. What starting it costs is measured apart and taken off.

Figures are CPU time, judge, zygotes and programs together, a test that is really run (a wrong program's first alone).
Each contender has several turns and its cheapest counts: whatever else the machine does can only add.

    python benchmarks/judge.py [--quick] [--livecodebench CHECKOUT] [--page docs/results/judge.md]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
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
from typing import Final

from deepcoder_contracts.judge import JudgeRequest, Scoring, TestCase, Tier
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.tiers import find_tier
from deepcoder_sandbox.zygote_process import ZygoteConfig

PROGRAM: Final = """def main():
    n, k = map(int, input().split())
    s = k
    for i in range(n):
        j = i & 1023
        s += j * j % 7
    print(s)


main()
"""
TESTS: Final = (5, 15, 50)
MILLISECONDS: Final = (1, 20, 200)
WORKERS: Final = 2

# Its usual way in, with as many processes as the judge has slots; its progress goes nowhere.
HARNESS: Final = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations
asked = json.load(sys.stdin)
out = os.fdopen(os.dup(1), "w")
for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
samples = [{"input_output": json.dumps({"inputs": i, "outputs": o, "fn_name": None})} for _, i, o in asked]
results, _ = evaluate_generations(samples, [[code] for code, _, _ in asked], False, int(sys.argv[2]), 20)
for index in range(len(asked)):
    print(all(r is True for r in results[index][0]), file=out)
"""

Judged = tuple[float, list[bool]]
"""CPU seconds, and whether each submission passed."""


@dataclass(frozen=True)
class Cell:
    """One size of workload."""

    tests: int
    milliseconds: int
    submissions: tuple[Submission, ...]
    expected: tuple[bool, ...]

    @property
    def name(self) -> str:
        """Its key in the figures."""
        return f"{self.tests}x{self.milliseconds}ms"

    @property
    def tests_run(self) -> int:
        """Tests that fail-fast judging runs: all of a right program's, one of a wrong one's."""
        return sum(self.tests if right else 1 for right in self.expected)


def add_up(n: int) -> int:
    """What the program adds up."""
    s = 0
    for i in range(n):
        j = i & 1023
        s += j * j % 7
    return s


def iterations_per_ms() -> int:
    """Return how often the program's loop runs in a millisecond here: the best of several tries."""
    count, best = 10_000, float("inf")
    for _ in range(100):
        used = time.process_time()
        add_up(count)
        best = min(best, time.process_time() - used)
    return max(1, int(count / (best * 1000)))


def make_cell(tests: int, milliseconds: int, count: int, per_ms: int, chance: random.Random) -> Cell:
    """Return `count` submissions, one in five of them wrong from its first test on."""
    submissions, expected = [], []
    base = per_ms * milliseconds
    for index in range(count):
        right = index % 5 != 4
        cases = []
        for _ in range(tests):
            n, k = base + chance.randrange(64), chance.randrange(1000)
            answer = k + add_up(1024) * (n // 1024) + add_up(n % 1024)
            cases.append(TestCase(input=f"{n} {k}", output=str(answer)))
        code = PROGRAM if right else PROGRAM.replace("s = k", "s = k + 1")
        request = JudgeRequest(id=str(index), code=code, tests=cases, time_limit_s=20)
        submissions.append(Submission(request, tuple(cases)))
        expected.append(right)
    return Cell(tests, milliseconds, tuple(submissions), tuple(expected))


def _cpu_now() -> float:
    """CPU seconds of this process and of its reaped children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def cpu_seconds(action: Callable[[], list[bool]]) -> Judged:
    """Return the CPU seconds that `action` took, and its answers."""
    before = _cpu_now()
    answers = action()
    return _cpu_now() - before, answers


def beyond_start(run: Callable[[tuple[Submission, ...]], list[bool]], submissions: tuple[Submission, ...]) -> Judged:
    """Return what `run` took for the submissions beyond what it takes for the first of them alone, scaled to all.

    That leaves out what is paid once, however many there are, such as starting a judge or loading a harness.
    """
    one_s, _ = cpu_seconds(lambda: run(submissions[:1]))
    all_s, answers = cpu_seconds(lambda: run(submissions))
    return (all_s - one_s) * len(submissions) / (len(submissions) - 1), answers


def by_judge(config: ZygoteConfig, scoring: Scoring, cell: Cell) -> Judged:
    """Judge the cell with a pool of its own."""

    def judge(submissions: tuple[Submission, ...]) -> list[bool]:
        pool = Pool(config, WORKERS, "bench", max_queued=len(submissions) + 1)
        futures = [pool.submit(submission) for submission in submissions]
        answers = [future.result().passed is True for future in futures]
        pool.close(600)
        return answers

    scored = tuple(
        Submission(submission.request.model_copy(update={"scoring": scoring}), submission.tests)
        for submission in cell.submissions
    )
    return beyond_start(judge, scored)


def by_python_file(cell: Cell) -> Judged:
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


def by_the_program_alone(cell: Cell) -> Judged:
    """Call the program in this process, with nothing between it and us: what no judge can save."""

    def run() -> list[bool]:
        return [
            all(passes(compile(s.request.code, "main.py", "exec"), test) for test in s.tests) for s in cell.submissions
        ]

    def passes(code: object, test: TestCase) -> bool:
        usual, sys.stdin = sys.stdin, io.StringIO(test.input)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, {"__name__": "__main__"})  # type: ignore[call-overload]  # ours  # noqa: S102
        finally:
            sys.stdin = usual
        return printed.getvalue().split() == test.output.split()

    return cpu_seconds(run)


def by_livecodebench(checkout: str, cell: Cell) -> Judged:
    """Run LiveCodeBench's own harness from a checkout."""

    def run(submissions: tuple[Submission, ...]) -> list[bool]:
        asked = [(s.request.code, [t.input for t in s.tests], [t.output for t in s.tests]) for s in submissions]
        command = [sys.executable, "-c", HARNESS, checkout, str(WORKERS)]
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=3600
        )
        return [line == "True" for line in done.stdout.split()]

    return beyond_start(run, cell.submissions)


NAMES: Final = {
    "alone": "the program alone",
    "strict": "strict",
    "strict_unconfined": "strict, unconfined",
    "livecodebench": "livecodebench",
    "livecodebench_unconfined": "livecodebench, unconfined",
    "python_file": "`python file`",
    "harness": "LiveCodeBench's harness",
}


def measure(cell: Cell, contenders: dict[str, Callable[[Cell], Judged]], turns: int) -> dict[str, float | None]:
    """Return each contender's CPU milliseconds a test, its cheapest turn; None where its verdicts differ."""
    costs: dict[str, float | None] = {}
    for turn in range(turns):
        for name, contender in contenders.items():
            seconds, answers = contender(cell)
            cost = seconds / cell.tests_run * 1000
            if tuple(answers) != cell.expected or (turn and costs[name] is None):
                costs[name] = None
            else:
                costs[name] = min(cost, costs.get(name) or cost)
    return costs


def summarize(figures: dict[str, dict[str, float | None]]) -> dict[str, object]:
    """Return the figures that are promised, by name: ratios, but for `strict_adds_ms`."""
    first, many, long = (figures.get(name, {}) for name in ("5x1ms", "15x1ms", "15x200ms"))
    return {
        "lcb_ratio": _ratio(first.get("harness"), first.get("livecodebench")),
        "strict_ratio": _ratio(first.get("harness"), first.get("strict")),
        "isolation_cost": _share(first.get("strict"), first.get("strict_unconfined")),
        "livecodebench_isolation_cost": _share(first.get("livecodebench"), first.get("livecodebench_unconfined")),
        "strict_adds_ms": _difference(many.get("strict"), many.get("alone")),
        "strict_overhead_at_200_ms": _share(long.get("strict"), long.get("alone")),
        "livecodebench_overhead_at_200_ms": _share(long.get("livecodebench"), long.get("alone")),
    }


def _ratio(slow: float | None, fast: float | None) -> float | None:
    return None if slow is None or fast is None else round(slow / fast, 2)


def _share(cost: float | None, base: float | None) -> float | None:
    """How much `cost` is above `base`, as a share of it."""
    return None if cost is None or base is None else round(cost / base - 1, 3)


def _difference(cost: float | None, base: float | None) -> float | None:
    return None if cost is None or base is None else round(cost - base, 2)


def main() -> int:
    """Run the table, print it, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cells of short tests only")
    parser.add_argument("--livecodebench", default=os.environ.get("DEEPCODER_LIVECODEBENCH"), help="a checkout's path")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    parser.add_argument("--seed", type=int, default=20250408)
    parser.add_argument("--turns", type=int, default=3, help="turns that each contender has; its cheapest counts")
    options = parser.parse_args()

    config, findings = find_tier(ZygoteConfig(), Tier.LANDLOCK)
    open_config = ZygoteConfig(tier=Tier.UNCONFINED)
    contenders: dict[str, Callable[[Cell], Judged]] = {
        "alone": by_the_program_alone,
        "strict": lambda cell: by_judge(config, Scoring.STRICT, cell),
        "strict_unconfined": lambda cell: by_judge(open_config, Scoring.STRICT, cell),
        "livecodebench": lambda cell: by_judge(config, Scoring.LIVECODEBENCH, cell),
        "livecodebench_unconfined": lambda cell: by_judge(open_config, Scoring.LIVECODEBENCH, cell),
        "python_file": by_python_file,
    }
    if options.livecodebench:
        contenders["harness"] = lambda cell: by_livecodebench(options.livecodebench, cell)
    per_ms, chance = iterations_per_ms(), random.Random(options.seed)
    sizes = [(5, 1), (15, 1)] if options.quick else [(tests, ms) for ms in MILLISECONDS for tests in TESTS]
    figures: dict[str, dict[str, float | None]] = {}
    table = [_header(contenders)]
    print(table[0], flush=True)
    for tests, milliseconds in sizes:
        count = max(6, min(100, 2400 // (tests * (milliseconds + 5))))
        cell = make_cell(tests, milliseconds, count, per_ms, chance)
        figures[cell.name] = measure(cell, contenders, options.turns)
        table.append(_row(cell, figures[cell.name]))
        print(table[-1], flush=True)
    summary = summarize(figures)
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(_page(table, summary, findings.tier, options.turns))
    print(json.dumps({**summary, "tier": findings.tier.value, "cpu_ms_per_test": figures}))
    return 0


def _header(contenders: dict[str, Callable[[Cell], Judged]]) -> str:
    return f"| tests × ms | {' | '.join(NAMES[name] for name in contenders)} |\n|{'---|' * (len(contenders) + 1)}"


def _row(cell: Cell, costs: dict[str, float | None]) -> str:
    compared = costs.get("harness") or costs["python_file"]
    shown = ["void" if cost is None else f"{cost:.2f} ms ({_ratio(compared, cost)}×)" for cost in costs.values()]
    return f"| {cell.tests} × {cell.milliseconds} | {' | '.join(shown)} |"


def _page(table: list[str], summary: dict[str, object], tier: Tier, turns: int) -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip() or "unknown"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    promised = "\n".join(f"| `{name}` | {value} |" for name, value in summary.items())
    return (
        f"# The judge's speed, {datetime.date.today().isoformat()}\n\n"
        f"Commit {commit}, {os.cpu_count()} cores ({platform.machine()}), Linux {platform.release()}, Python"
        f" {platform.python_version()}, tier {tier}, load average at the end {load}. CPU milliseconds a test that is"
        f" run, judge and programs together, the cheapest of {turns} turns; in brackets how many times cheaper than"
        " LiveCodeBench's harness (or, without a checkout of it, than `python file`). Void: its verdicts differ."
        " `benchmarks/judge.py` says what is measured, `make bench-judge` repeats it.\n\n"
        + "\n".join(table)
        + "\n\nOf 5 tests × 1 ms, of 15 × 1 ms (`strict_adds_ms`: what it costs beyond the program alone) and of"
        " 15 × 200 ms; ratios and shares are of CPU time:\n\n| | |\n|---|---|\n" + promised + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
