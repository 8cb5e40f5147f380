"""Removes and adds the instructions around a problem's statement.

Sets are compared by their bare statements. Two copies of a problem must be recognised as the same even if one came with
LiveCodeBench's instructions and the other with SYNTHETIC-1's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# LiveCodeBench's own sentences: results are comparable only with the same prompt.
_ROLE = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)
_CODEFORCES = (
    "Solve the following problem with a Python program that reads from stdin and writes to stdout. Put the whole "
    "program into one fenced block of code at the end of your answer."
)
_ANSWER = "### Answer: (use the provided format with backticks)"

_BEFORE = re.compile(
    r"\A\s*(?:You are an expert Python programmer\. You will be given a question[^\n]*\s*)?(?:### Question:?\s*)?"
    r"(?:Solve the following coding problem using the programming language \w+:\s*)?"
)
_BEHIND = re.compile(  # matching starts only at the beginning of a run of white space, which avoids backtracking
    r"(?<!\s)\s*+(?:### Format: (?:You will use the following starter code|Read the inputs from stdin).*"
    r"|### Answer: \(use the provided format.*"
    r"|The input will be (?:given via )?stdin and you should print your solution to stdout\s*"
    r"(?:Now solve the problem and return the code\.\s*)?"
    r"|Now solve the problem and return the code\.\s*"
    r"|Let's think step by step and output the final answer within \\boxed\{\}\.\s*)\Z",
    re.DOTALL,
)


def bare(prompt: str) -> str:
    """Return the statement within a prompt of any known form."""
    text = prompt[_BEFORE.match(prompt).end() :]  # type: ignore[union-attr]  # it also matches the empty string
    found = _BEHIND.search(text)
    return (text[: found.start()] if found else text).strip()


def livecodebench_prompt(question: str, starter_code: str) -> str:
    """Return a question as one user message, exactly as in the published training and evaluation: nothing separates the
    question from the text after it."""
    if starter_code.strip():
        wish, code = _WITH_STARTER, starter_code
    else:
        wish, code = _WITHOUT_STARTER, "# YOUR CODE HERE"
    return f"{_ROLE}\n\n{question}### Format: {wish}\n```python\n{code}\n```\n\n{_ANSWER}\n\n"


def codeforces_prompt(statement: str, given: str, asked: str, note: str, examples: Sequence[tuple[str, str]]) -> str:
    """Return the parts of a problem as one message. Tags are left out, because they reveal how to solve it."""
    parts = [statement.strip()]
    parts += [f"{title}\n{text.strip()}" for title, text in (("Input", given), ("Output", asked)) if text.strip()]
    for read, printed in examples:
        parts.append(f"Example input\n```\n{read.strip()}\n```\nExample output\n```\n{printed.strip()}\n```")
    parts += [f"Note\n{note.strip()}"] if note.strip() else []
    return f"{_CODEFORCES}\n\n" + "\n\n".join(parts)


def mathematics_prompt(problem: str) -> str:
    """Return a question as DeepScaleR asked it, with the final answer expected in a box."""
    return f"{problem.strip()} Let's think step by step and output the final answer within \\boxed{{}}."
