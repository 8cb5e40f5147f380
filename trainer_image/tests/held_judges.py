"""`python held_judges.py MOST PROGRAM ARGUMENTS…`: PROGRAM, a module or a script, of whose submissions MOST are judged.

The others wait for ever, so the program has not ended when a test kills it, however late the test looks.
"""

from __future__ import annotations

import asyncio
import runpy
import sys

from deepcoder_trainer.judge.backend import Judgement
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.submission import Submission


def hold_after(most: int) -> None:
    """Judges answer so many submissions of this process."""
    judge, left = JudgeClient.judge, iter(range(most))

    async def held(client: JudgeClient, submission: Submission) -> Judgement:
        if next(left, None) is None:
            await asyncio.Event().wait()
        return await judge(client, submission)

    JudgeClient.judge = held  # type: ignore[method-assign]


if __name__ == "__main__":
    hold_after(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
