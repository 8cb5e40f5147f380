"""The process that compares mathematical answers: one JSON line in, `{gold, given, cpu_seconds}`, one out.

The reply is `{right, gold_read}`: whether the answers are the same, and whether the right one could be read as
mathematics. Answers that cannot be read are compared as text.

math-verify parses LaTeX into sympy. The input was written by a model and may take forever (`9^{9^{9^9}}`) or all
memory, so it runs in this process, within limits. When a comparison has used up its CPU time, the kernel ends the
process with SIGPROF; CPU time does not depend on the load of other processes. A comparison that fails, for lack of
memory or otherwise, is reported as `{broke}`, and then the process exits, because its memory may be in any state.
`confinement` limits what else it may do. Only the LaTeX reader is used: the reader of plain expressions evaluates them
as Python. The process ends when its input ends, and so with its parent.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from deepcoder_trainer.rollout.confinement import confine

MEMORY_BYTES = 2 << 30


def main() -> int:
    """Compare answers until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers, sys.stdout = sys.stdout, sys.stderr  # a library that prints must not corrupt the replies
    compare = _comparison()
    print(json.dumps({"ready": True, "confined": confine()}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, asked["cpu_seconds"])
        try:
            right, gold_read = compare(asked["gold"], asked["given"])
        except Exception as error:
            print(json.dumps({"broke": type(error).__name__}), file=answers, flush=True)
            return 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"right": right, "gold_read": gold_read}), file=answers, flush=True)
    return 0


def _comparison() -> Any:
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    latex = [LatexExtractionConfig(boxed_match_priority=0)]

    def compare(gold: str, given: str) -> tuple[bool, bool]:
        wanted, found = (
            parse(f"\\boxed{{{text}}}", latex, parsing_timeout=None) for text in (gold.strip("$ "), given.strip("$ "))
        )
        gold_read = any(not isinstance(reading, str) for reading in wanted)
        return bool(wanted and found and verify(wanted, found, timeout_seconds=None)), gold_read

    return compare


if __name__ == "__main__":
    sys.exit(main())
