"""The process that compares mathematical answers: one JSON line in, `{gold, given}`, one out, `{right}`.

math-verify reads LaTeX through a grammar into sympy. What it is given was written by a model: it may take for ever
(`9^{9^{9^9}}`) or all memory, so it is done here, within limits, and whoever asks ends this process when it is late.
Only the LaTeX reader is used: the one for plain expressions evaluates them as Python. It ends when its input does, and
so with whoever started it.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

MEMORY_BYTES = 2 << 30


def main() -> int:
    """Compare until there is no more input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers, sys.stdout = sys.stdout, sys.stderr  # a library that prints does not spoil the answers
    compare = _comparison()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"right": compare(asked["gold"], asked["given"])}), file=answers, flush=True)
    return 0


def _comparison() -> Any:
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    latex = [LatexExtractionConfig(boxed_match_priority=0)]

    def compare(gold: str, given: str) -> bool:
        wanted, found = (
            parse(f"\\boxed{{{text}}}", latex, parsing_timeout=None) for text in (gold.strip("$ "), given.strip("$ "))
        )
        return bool(wanted and found and verify(wanted, found, timeout_seconds=None))

    return compare


if __name__ == "__main__":
    sys.exit(main())
