"""The texts on which an export is compared: small problems and programs, the same for every model and every export.

They are drawn with a fixed seed, so that the figures of two cards can be compared. They are cut to a few dozen tokens,
which cost seconds for a small model and minutes for one with 14 billion parameters.
"""

from __future__ import annotations

import random

SEED = 0
COUNT = 8
MOST_TOKENS = 64

_TASKS = (
    "Given n integers, print the {nth} largest of them.",
    "You are given a string s. Count its substrings of length {small} that read the same backwards.",
    "A grid has {small} rows and {large} columns. How many shortest paths lead from one corner to the other?",
    "There are {large} cities and n roads between them. Print the length of a shortest tour, or -1 if there is none.",
    "For each of t queries, print the number of divisors of x modulo {large}.",
)
_PROGRAMS = (
    "import sys\n\ndef main():\n    n, *a = map(int, sys.stdin.read().split())\n    a.sort()\n    print(a[-{small}])\n",
    "from collections import deque\n\nqueue = deque([(0, {small})])\nwhile queue:\n    x, y = queue.popleft()\n",
    "MOD = {large}\nf = [1] * (n + 1)\nfor i in range(2, n + 1):\n    f[i] = f[i - 1] * i % MOD\n",
)
AWKWARD = (
    "x  =\t1\n\n\n  y = 'naïve — 北京 🚀'\r\n",
    "I'll print 1234567 and 3.14159; you've 0x7f, we'RE done...\n\n",
    "```python\nprint('a' * 10)\n```",
)
"""Texts on which splitting rules differ: runs of spaces and digits, apostrophes, other scripts, fences."""


def texts(seed: int = SEED, count: int = COUNT) -> list[str]:
    """Return the prompts: each a task and the beginning of a program for it."""
    rng = random.Random(f"export-prompts/{seed}")
    made = []
    for _ in range(count):
        numbers = {"nth": f"{rng.randint(4, 9)}th", "small": rng.randint(2, 9), "large": rng.randint(10, 10**9)}
        task, program = rng.choice(_TASKS).format(**numbers), rng.choice(_PROGRAMS).format(**numbers)
        made.append(f"{task}\n\n```python\n{program}")
    return made


def tokens(tokenizer: object) -> list[list[int]]:
    """Return the prompts as token ids of a Hugging Face tokenizer, cut to `MOST_TOKENS`."""
    encode = tokenizer.encode  # type: ignore[attr-defined]
    return [list(encode(text, add_special_tokens=False))[:MOST_TOKENS] for text in texts()]
