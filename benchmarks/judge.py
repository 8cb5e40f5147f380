"""`make bench-judge`: CPU time a test costs the judge, beside `python file` and, where given, LiveCodeBench's harness.

Seeded workload of our own: programs of three shapes in turn (a plain one on standard input; one with imports, brackets
over several lines and a block for the command line; a method of class Solution) that add up numbers for about 1, 20 or
200 ms of CPU, with 5, 15 or 50 tests each, one in five of them wrong from its first test on. Every contender judges the
same submissions, in the same run and in turns, and has to give the same verdicts, or its cell is void.

Figures are CPU time, judge, zygotes and programs together, a test that is really run (a wrong program's first alone).
Of several turns the cheapest counts, since whatever else the machine does can only add; what is paid once, however many
submissions there are, is measured by judging the first of them alone, one for each slot so that each starts what it
starts once, in the same number of turns, and taken off. What judging adds to tests of 200 ms is too small a share for
such turns; `judge_overhead.py` says how that is measured.

    python benchmarks/judge.py [--quick] [--livecodebench CHECKOUT] [--page docs/results/judge.md]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Final

import judge_overhead
from judge_overhead import Overhead, overheads
from judge_workload import Cell, as_script, iterations_per_ms, make_cell
from page_head import commit, machine

from deepcoder_contracts.judge import Scoring, TestCase, Tier
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.tiers import find_tier
from deepcoder_sandbox.worker.boot import PREAMBLE
from deepcoder_sandbox.zygote_process import ZygoteConfig

TESTS: Final = (5, 15, 50)
MILLISECONDS: Final = (1, 20, 200)
WORKERS: Final = 2
ROUNDS: Final = 30
"""Of short turns that tell what judging adds to long tests."""

# Its usual way in, with as many processes as the judge has slots; its progress goes nowhere.
HARNESS: Final = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations
asked = json.load(sys.stdin)
out = os.fdopen(os.dup(1), "w")
for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
samples = [{"input_output": json.dumps({"inputs": i, "outputs": o, "fn_name": name})} for _, name, i, o in asked]
results, _ = evaluate_generations(samples, [[each[0]] for each in asked], False, int(sys.argv[2]), 20)
for index in range(len(asked)):
    print(all(r is True for r in results[index][0]), file=out)
"""

# A process of its own for each program, of an interpreter that has loaded what programs import, and nothing else: no
# user, limit, filter or rewriting, and the program's own process tells that it passed.
FORKS: Final = """
import gc, importlib, io, json, os, sys
asked, modules = json.load(sys.stdin)
for name in modules:
    importlib.import_module(name)
def passes(code, tests):
    code = compile(code, "main.py", "exec")
    for given, expected in tests:
        sys.stdin, sys.stdout = io.StringIO(given), io.StringIO()
        exec(code, {"__name__": "__main__"})
        if sys.stdout.getvalue().split() != expected.split():
            return False
    return True
gc.collect()
gc.freeze()
for code, tests in asked:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if passes(code, tests) else 1)
    print(os.waitpid(pid, 0)[1] == 0)
"""

Submissions = tuple[Submission, ...]
Judged = tuple[float, list[bool]]
"""CPU seconds, and whether each submission passed."""

Contender = Callable[[Submissions], Judged]


def _cpu_now() -> float:
    """CPU seconds of this process and of its reaped children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def cpu_seconds(action: Callable[[], list[bool]]) -> Judged:
    """Return the CPU seconds that `action` took, and its answers."""
    before = _cpu_now()
    answers = action()
    return _cpu_now() - before, answers


def by_judge(config: ZygoteConfig, scoring: Scoring, submissions: Submissions) -> Judged:
    """Judge with a pool of its own."""

    def judge() -> list[bool]:
        pool = Pool(config, WORKERS, "bench", max_queued=len(submissions) + 1)
        futures = [
            pool.submit(Submission(each.request.model_copy(update={"scoring": scoring}), each.tests))
            for each in submissions
        ]
        answers = [future.result().passed is True for future in futures]
        pool.close(600)
        return answers

    return cpu_seconds(judge)


def by_python_file(submissions: Submissions) -> Judged:
    """Run `python file` for each test, comparing tokens, stopping at the first failure."""
    interpreter = getattr(sys, "_base_executable", sys.executable)

    def run() -> list[bool]:
        answers = []
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "main.py")
            for submission in submissions:
                path.write_text(as_script(submission))
                answers.append(all(passes(path, test) for test in submission.tests))
        return answers

    def passes(path: Path, test: TestCase) -> bool:
        done = subprocess.run([interpreter, str(path)], input=test.input, capture_output=True, text=True, timeout=60)
        return done.returncode == 0 and done.stdout.split() == test.output.split()

    return cpu_seconds(run)


def by_the_program_alone(submissions: Submissions) -> Judged:
    """Call the program in this process, with nothing between it and us: what no judge can save."""

    def run() -> list[bool]:
        compiled = [compile(as_script(submission), "main.py", "exec") for submission in submissions]
        return [all(passes(code, test) for test in s.tests) for code, s in zip(compiled, submissions, strict=True)]

    def passes(code: CodeType, test: TestCase) -> bool:
        usual, sys.stdin = sys.stdin, io.StringIO(test.input)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, {"__name__": "__main__"})  # ours  # noqa: S102
        finally:
            sys.stdin = usual
        return printed.getvalue().split() == test.output.split()

    return cpu_seconds(run)


def by_a_fork(submissions: Submissions) -> Judged:
    """Fork a small warm interpreter for each program, and judge nothing: what a plain process a program costs."""
    interpreter = getattr(sys, "_base_executable", sys.executable)

    def run() -> list[bool]:
        asked = [(as_script(s), [(t.input, t.output) for t in s.tests]) for s in submissions]
        command = [interpreter, "-s", "-S", "-c", FORKS]
        given = json.dumps((asked, PREAMBLE))
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=3600)
        return [line == "True" for line in done.stdout.split()]

    return cpu_seconds(run)


def by_livecodebench(checkout: str, submissions: Submissions) -> Judged:
    """Run LiveCodeBench's own harness from a checkout."""

    def run() -> list[bool]:
        asked = [
            (s.request.code, s.request.fn_name, [t.input for t in s.tests], [t.output for t in s.tests])
            for s in submissions
        ]
        command = [sys.executable, "-c", HARNESS, checkout, str(WORKERS)]
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=3600
        )
        return [line == "True" for line in done.stdout.split()]

    return cpu_seconds(run)


NAMES: Final = {
    "alone": "the program alone",
    "fork": "a fork, not judged",
    "strict": "strict",
    "strict_landlock": "strict, Landlock",
    "strict_unconfined": "strict, unconfined",
    "livecodebench": "livecodebench",
    "livecodebench_landlock": "livecodebench, Landlock",
    "livecodebench_unconfined": "livecodebench, unconfined",
    "python_file": "`python file`",
    "harness": "LiveCodeBench's harness",
}


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds a test."""

    ms: float
    """Of the cheapest turn."""
    worst_ms: float
    """Of the dearest."""


def measure(cell: Cell, contenders: dict[str, Contender], turns: int) -> dict[str, Cost | None]:
    """Return what a test costs each contender; None where its verdicts differ."""
    once: dict[str, list[float]] = {name: [] for name in contenders}
    all_: dict[str, list[float]] = {name: [] for name in contenders}
    void = set()
    for _ in range(turns):
        for name, contender in contenders.items():
            once[name].append(contender(cell.submissions[:WORKERS])[0])
            seconds, answers = contender(cell.submissions)
            all_[name].append(seconds)
            if tuple(answers) != cell.expected:
                void.add(name)
    of_first = sum(cell.tests if right else 1 for right in cell.expected[:WORKERS])

    def cost(name: str, seconds: float) -> float:
        return (seconds - min(once[name])) / (cell.tests_run - of_first) * 1000

    return {
        name: None if name in void else Cost(cost(name, min(all_[name])), cost(name, max(all_[name])))
        for name in contenders
    }


def submissions_of(tests: int, milliseconds: int) -> int:
    """Return how many submissions a cell has.

    Short tests are many: what is taken off is known to 20 ms or so, which has to be a small share of the rest.
    """
    budget_ms, most = (9000, 300) if milliseconds == min(MILLISECONDS) else (2400, 90)
    return max(6, min(most, budget_ms // (tests * (milliseconds + 5))))


def turns_of(cell: Cell, most: int) -> int:
    """Return how many turns a cell has: `most`, but one for the largest cell, whose turn takes minutes."""
    return 1 if (cell.tests, cell.milliseconds) == (max(TESTS), max(MILLISECONDS)) else most


def added_to_long_tests(config: ZygoteConfig, seed: int) -> dict[str, Overhead | None]:
    """Return what each scoring mode adds to the fewest tests of the longest kind, where it is the largest share."""
    cell = make_cell(min(TESTS), max(MILLISECONDS), 6, iterations_per_ms(), random.Random(seed))
    with contextlib.ExitStack() as stack:
        judges = {
            mode.value: stack.enter_context(judge_overhead.judge(config, mode, WORKERS))
            for mode in (Scoring.STRICT, Scoring.LIVECODEBENCH)
        }
        base = stack.enter_context(judge_overhead.alone(_passes_alone, WORKERS))
        return overheads(cell, base, judges, ROUNDS)


def _passes_alone(submission: Submission) -> bool:
    return by_the_program_alone((submission,))[1] == [True]


def summarize(costs: dict[str, dict[str, Cost | None]], added: dict[str, Overhead | None]) -> dict[str, object]:
    """Return the figures that are promised, by name: ratios, but for `strict_adds_ms`."""
    figures = {cell: {name: cost and cost.ms for name, cost in row.items()} for cell, row in costs.items()}
    first, many = (figures.get(name, {}) for name in ("5x1ms", "15x1ms"))
    return {
        "lcb_ratio": _ratio(first.get("harness"), first.get("livecodebench")),
        "strict_ratio": _ratio(first.get("harness"), first.get("strict")),
        "isolation_cost": _share(first.get("strict"), first.get("strict_unconfined")),
        "livecodebench_isolation_cost": _share(first.get("livecodebench"), first.get("livecodebench_unconfined")),
        "strict_adds_ms": _difference(many.get("strict"), many.get("alone")),
        **{f"{name}_overhead_at_200_ms": share and round(share.median, 3) for name, share in added.items()},
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
    parser.add_argument("--quick", action="store_true", help="of the table, two cells of short tests only")
    parser.add_argument("--livecodebench", default=os.environ.get("DEEPCODER_LIVECODEBENCH"), help="a checkout's path")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    parser.add_argument("--seed", type=int, default=20250408)
    parser.add_argument(
        "--turns",
        type=int,
        default=3,
        help="turns of each contender, but one for the largest cell; the cheapest counts",
    )
    options = parser.parse_args()

    code = commit()
    config, findings = find_tier(ZygoteConfig(), Tier.LANDLOCK)
    contenders: dict[str, Contender] = {"alone": by_the_program_alone, "fork": by_a_fork}
    for scoring in (Scoring.STRICT, Scoring.LIVECODEBENCH):
        contenders[scoring.value] = partial(by_judge, config, scoring)
        if findings.tier is Tier.NAMESPACES:
            contenders[f"{scoring.value}_landlock"] = partial(by_judge, ZygoteConfig(tier=Tier.LANDLOCK), scoring)
        contenders[f"{scoring.value}_unconfined"] = partial(by_judge, ZygoteConfig(tier=Tier.UNCONFINED), scoring)
    contenders["python_file"] = by_python_file
    if options.livecodebench:
        contenders["harness"] = partial(by_livecodebench, options.livecodebench)
    chance = random.Random(options.seed)
    added = added_to_long_tests(config, options.seed)
    long = _long(added)
    print(long, flush=True)
    sizes = [(5, 1), (15, 1)] if options.quick else [(tests, ms) for ms in MILLISECONDS for tests in TESTS]
    costs: dict[str, dict[str, Cost | None]] = {}
    table = [_header(contenders)]
    print(table[0], flush=True)
    for tests, milliseconds in sizes:
        cell = make_cell(tests, milliseconds, submissions_of(tests, milliseconds), iterations_per_ms(), chance)
        turns = turns_of(cell, options.turns)
        costs[cell.name] = measure(cell, contenders, turns)
        table.append(_row(cell, costs[cell.name], turns))
        print(table[-1], flush=True)
    summary = summarize(costs, added)
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(_page(table, long, summary, findings.tier, code))
    figures = {cell: {name: cost and round(cost.ms, 3) for name, cost in row.items()} for cell, row in costs.items()}
    print(json.dumps({**summary, "tier": findings.tier.value, "cpu_ms_per_test": figures}))
    return 0


def _header(contenders: dict[str, Contender]) -> str:
    return f"| tests × ms | {' | '.join(NAMES[name] for name in contenders)} |\n|{'---|' * (len(contenders) + 1)}"


def _row(cell: Cell, costs: dict[str, Cost | None], turns: int) -> str:
    compared = costs.get("harness") or costs["python_file"]
    shown = []
    for cost in costs.values():
        if cost is None or compared is None:
            shown.append("void")
        else:
            shown.append(f"{cost.ms:.2f} – {cost.worst_ms:.2f} ms ({_ratio(compared.ms, cost.ms)}×)")
    return f"| {cell.tests} × {cell.milliseconds}, turns: {turns} | {' | '.join(shown)} |"


def _long(added: dict[str, Overhead | None]) -> str:
    shown = (
        f"`{name}` "
        + (f"{share.median:+.1%} ({share.lower:+.1%} to {share.upper:+.1%})" if share else "void: a verdict differs")
        for name, share in added.items()
    )
    return (
        f"Added to {min(TESTS)} tests × {max(MILLISECONDS)} ms, {WORKERS} at once, median of {ROUNDS} rounds (and the"
        f" middle half of them): {', '.join(shown)}."
    )


def _page(table: list[str], long: str, summary: dict[str, object], tier: Tier, code: str) -> str:
    promised = "\n".join(f"| `{name}` | {value} |" for name, value in summary.items())
    return (
        f"# The judge's speed, {datetime.date.today().isoformat()}\n\n"
        f"Commit {code}, tier {tier}, {machine()}. CPU milliseconds a test that is"
        " run, judge and programs together, the cheapest and the dearest turn; in brackets how many times cheaper than"
        " LiveCodeBench's harness (or, without a checkout of it, than `python"
        " file`). Void: its verdicts differ. `benchmarks/judge.py` says what is measured; its arguments were"
        f" `{' '.join(sys.argv[1:])}`.\n\n"
        + "\n".join(table)
        + f"\n\n{long}\n\nOf 5 tests × 1 ms, of 15 × 1 ms (`strict_adds_ms`: what it costs beyond the program alone)"
        " and of 5 × 200 ms; ratios and shares are of CPU time:\n\n| | |\n|---|---|\n" + promised + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
