"""Run a program whose judges answer only so many submissions: `python held_judges.py COUNT PROGRAM ARGUMENTS…`.

PROGRAM is a module or a script. Its other submissions wait for ever. The program therefore still runs when a test kills
it, however late the test looks; the test must always kill it.
"""

from __future__ import annotations

import asyncio
import runpy
import sys

from deepcoder_trainer.judge.backend import Judgement
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.submission import Submission


def hold_after(count: int) -> None:
    """Let judges answer `count` submissions of this process, and no more."""
    judge, left = JudgeClient.judge, iter(range(count))

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
