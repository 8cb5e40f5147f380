"""A reward for finding security flaws: a response is right if its input makes a flawed program print its secret.

The statement shows a small program and says that it must never print its secret. The model answers with an input, in
its last fenced block. The run's sandbox then runs the program on that input. A secret made for this response replaces
the one shown, so the model cannot know it; the program must print it and nothing else. On the same input, the fixed
program must keep its secret. So an input that the program is meant to answer earns nothing.

A problem has one test, which holds the two programs: `input` the flawed one, `output` the fixed one. Both contain
SECRET_HERE.
Use it as `recipe.reward: find_flaw:reward`, with this file importable in the trainer image.
"""

from __future__ import annotations

import hashlib
import re

from deepcoder_trainer.rollout.programs import Programs
from deepcoder_trainer.types import Problem

PLACE = "SECRET_HERE"
LONGEST_INPUT = 4096
_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


async def reward(problem: Problem, response: str, programs: Programs) -> float:
    """1 if the response's input makes the flawed program print its secret, but not the fixed one, else 0."""
    blocks = _FENCED.findall(response)
    if not blocks or len(blocks[-1]) > LONGEST_INPUT:
        return 0.0
    flawed, fixed = problem.tests[0].input, problem.tests[0].output
    # It cannot be guessed from the statement, and is the same whenever this response is judged again.
    secret = hashlib.sha256(f"{problem.id}\0{response}".encode()).hexdigest()[:16]
    test = [(blocks[-1], secret)]
    if not await programs.passes(flawed.replace(PLACE, secret), test):
        return 0.0
    return float(not await programs.passes(fixed.replace(PLACE, secret), test))
