"""A reward for finding security flaws: a response is right if its input makes a flawed program print its secret.

The statement shows a small program and says that it must never print its secret. The model answers with an input, in
its last fenced block. The program is then really run on that input, in the run's sandbox, with a secret of this
response's own in place of the one shown, and has to print it and nothing else: nobody can print what they do not have.
The program as it should have been written has to keep its secret on the same input, so that no input is rewarded which
was meant to be answered.

A problem's one test holds the two programs: `input` the flawed one, `output` the mended one. Both contain SECRET_HERE.
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
    """1 if the response's input makes the flawed program print its secret, and not the mended one, else 0."""
    blocks = _FENCED.findall(response)
    if not blocks or len(blocks[-1]) > LONGEST_INPUT:
        return 0.0
    flawed, mended = problem.tests[0].input, problem.tests[0].output
    # Not to be guessed from the statement, and the same whenever this response is judged again.
    secret = hashlib.sha256(f"{problem.id}\0{response}".encode()).hexdigest()[:16]
    test = [(blocks[-1], secret)]
    if not await programs.passes(flawed.replace(PLACE, secret), test):
        return 0.0
    return float(not await programs.passes(mended.replace(PLACE, secret), test))
