"""Where a session's CPU time goes (scoring livecodebench): judge, zygote and runners, by submission and by test.

Programs that do next to nothing are judged with one test and with nine; what they cost is split into what a submission
costs and what each of its tests adds. CPU time and page faults are the kernel's figures: of the judge's thread, of the
zygote, and of the runners it has reaped. Needs a tier in which the zygote is the process that was started, or its only
child; prints a table, and one JSON object as the last line.

    python benchmarks/judge_phases.py [--submissions 300] [--turns 3]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from judge_workload import SHAPES

from deepcoder_contracts.judge import JudgeRequest, Kind, Scoring, TestCase, Tier
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.tiers import find_tier
from deepcoder_sandbox.zygote_process import ZygoteConfig

FEW, MANY = 1, 9
WARM_UP: Final = 20
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_MINOR_FAULTS, _FAULTS_OF_CHILDREN, _USER_OF_CHILDREN, _SYSTEM_OF_CHILDREN = 7, 8, 13, 14  # after the process's name


class Spent(NamedTuple):
    """Milliseconds of CPU time, and page faults."""

    judge_ms: float
    zygote_ms: float
    runner_ms: float
    zygote_faults: float
    runner_faults: float


def spent(zygote: int) -> Spent:
    """Return what was spent so far, by this thread and by a zygote and its runners."""
    own_ns = int(Path(f"/proc/{zygote}/schedstat").read_text().split()[0])
    fields = Path(f"/proc/{zygote}/stat").read_text().rpartition(")")[2].split()
    of_runners = int(fields[_USER_OF_CHILDREN]) + int(fields[_SYSTEM_OF_CHILDREN])
    return Spent(
        time.thread_time() * 1e3,
        own_ns / 1e6,
        of_runners * 1e3 / _TICKS_A_SECOND,
        int(fields[_MINOR_FAULTS]),
        int(fields[_FAULTS_OF_CHILDREN]),
    )


def zygote_of(slot: Slot) -> int:
    """Return the zygote's pid: inside namespaces it is the only child of what was started."""
    started = slot.zygote_pid
    children = Path(f"/proc/{started}/task/{started}/children").read_text().split()
    return int(children[0]) if children else int(started or 0)


def submission(number: int, tests: int) -> Submission:
    """Return a right program whose loop has 64 rounds."""
    code, method = SHAPES[number % len(SHAPES)]
    total = sum((i & 1023) ** 2 % 7 for i in range(64))
    cases = [TestCase(input=f"64\n{k}" if method else f"64 {k}", output=str(total + k)) for k in range(tests)]
    request = JudgeRequest(
        id=str(number),
        code=code,
        kind=Kind.FUNCTION if method else Kind.STDIN,
        fn_name=method,
        tests=cases,
        scoring=Scoring.LIVECODEBENCH,
    )
    return Submission(request, tuple(cases))


def measure(config: ZygoteConfig, tests: int, count: int) -> Spent:
    """Return what one submission with so many tests costs."""
    slot = Slot(config, "bench")
    try:
        for number in range(WARM_UP):
            slot.judge(submission(number, tests), time.monotonic() + 60)
        asked = [submission(number, tests) for number in range(count)]
        zygote = zygote_of(slot)
        before = spent(zygote)
        passed = [slot.judge(each, time.monotonic() + 60).passed for each in asked]
        after = spent(zygote)
    finally:
        slot.close()
    if not all(passed):
        raise RuntimeError("a right program did not pass")
    return Spent(*((end - start) / count for start, end in zip(before, after, strict=True)))


def main() -> int:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3, help="of which the cheapest figure counts, each by itself")
    options = parser.parse_args()
    config, findings = find_tier(ZygoteConfig(), Tier.LANDLOCK)
    few, many = (
        Spent(*map(min, zip(*(measure(config, tests, options.submissions) for _ in range(options.turns)), strict=True)))
        for tests in (FEW, MANY)
    )
    print(f"Tier {findings.tier}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| | a submission | each test |\n|---|---|---|")
    figures = {}
    for name, first, last in zip(Spent._fields, few, many, strict=True):
        by_test = (last - first) / (MANY - FEW)
        figures[name] = {"submission": round(first - FEW * by_test, 3), "test": round(by_test, 3)}
        print(f"| {name} | {first - FEW * by_test:.3f} | {by_test:.3f} |")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
