"""The workload of `judge.py`: seeded programs of three shapes, with tests that they pass, or fail from the first on."""

from __future__ import annotations

import random
import statistics
import textwrap
import time
from dataclasses import dataclass
from typing import Final

from deepcoder_contracts.judge import JudgeRequest, Kind, TestCase
from deepcoder_sandbox.submission import Submission

_LOOP: Final = """    for i in range(n):
        j = i & 1023
        s += j * j % 7
"""
PLAIN: Final = f"""def main():
    n, k = map(int, input().split())
    s = k
{_LOOP}    print(s)


main()
"""
USUAL: Final = f"""import sys
from collections import defaultdict, deque
from typing import List


def solve(n: int, k: int) -> int:
    s = k
{_LOOP}    return s


def main() -> None:
    data: List[int] = [
        int(word)
        for word in sys.stdin.read().split()
    ]
    found = defaultdict(deque)
    found["sum"].append(solve(*data))
    print(*found["sum"])


if __name__ == "__main__":
    main()
"""
METHOD: Final = f"""class Solution:
    def addUp(self, n, k):
        s = k
{textwrap.indent(_LOOP, "    ")}        return s
"""
CALL: Final = """
import sys
print(Solution().addUp(*map(int, sys.stdin.read().split())))
"""
SHAPES: Final = ((PLAIN, None), (USUAL, None), (METHOD, "addUp"))
"""Programs, and the method that is called where they do not read standard input."""


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
    """Return how often the program's loop runs in a millisecond of CPU time: the median of tries over half a second.

    The best moment would make programs that take a tenth longer than they are said to on a machine whose speed changes.
    """
    count, seconds = 10_000, []
    for _ in range(1000):
        used = time.process_time()
        add_up(count)
        seconds.append(time.process_time() - used)
    return max(1, int(count / (statistics.median(seconds) * 1000)))


def make_cell(tests: int, milliseconds: int, count: int, per_ms: int, chance: random.Random) -> Cell:
    """Return `count` submissions, one in five of them wrong from its first test on."""
    submissions, expected = [], []
    base = per_ms * milliseconds
    for index in range(count):
        right = index % 5 != 4
        code, method = SHAPES[index % len(SHAPES)]
        cases = []
        for _ in range(tests):
            n, k = base + chance.randrange(64), chance.randrange(1000)
            answer = k + add_up(1024) * (n // 1024) + add_up(n % 1024)
            cases.append(TestCase(input=f"{n}\n{k}" if method else f"{n} {k}", output=str(answer)))
        request = JudgeRequest(
            id=str(index),
            code=code if right else code.replace("s = k", "s = k + 1"),
            kind=Kind.FUNCTION if method else Kind.STDIN,
            fn_name=method,
            tests=cases,
            time_limit_s=20,
        )
        submissions.append(Submission(request, tuple(cases)))
        expected.append(right)
    return Cell(tests, milliseconds, tuple(submissions), tuple(expected))


def as_script(submission: Submission) -> str:
    """Return the program as one that reads standard input."""
    return submission.request.code + (CALL if submission.request.fn_name else "")
