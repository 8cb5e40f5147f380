"""Answers of a careless programmer: the texts on which the demo's model is warm-started.

Short answers are careless. Verbose ones, with a comment that restates each step before its line, are mostly right. Some
lack the fences and so are no answer at all. A model trained on them knows the language and is right about a third of
the time. Reinforcement learning can then discover that care pays, and length with it: the published curves in
miniature.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from deepcoder_trainer.demo.generator import Chain, Step


@dataclass(frozen=True)
class Sloppiness:
    """Probabilities that shape the warm start."""

    right: float = 0.75
    """Probability that a line of a short answer is correct."""
    right_hard: float = 0.4
    """The same for hard operations."""
    right_verbose: float = 0.93
    """Probability that a line of a verbose answer is correct, hard or not."""
    verbose: float = 0.35
    """Probability that an answer has comments."""
    unfenced: float = 0.06
    """Probability that an answer lacks fences."""
    first_slip: float = 0.8
    """Probability that a slip is the operation's most likely one."""


def fenced(program: str) -> str:
    """Return a program as an answer, within fences."""
    return f"```python\n{program}\n```"


def sloppy_answer(chain: Chain, rng: random.Random, sloppiness: Sloppiness) -> str:
    """Draw an answer to the chain, with the probabilities of `sloppiness`."""
    verbose = rng.random() < sloppiness.verbose
    lines = [chain.family.read]
    for step in (*chain.steps, chain.output):
        if verbose:
            lines.append(f"# {step.phrase}")
        lines.append(_sloppy_line(step, rng, sloppiness, verbose))
    program = "\n".join(lines)
    return program if rng.random() < sloppiness.unfenced else fenced(program)


def _sloppy_line(step: Step, rng: random.Random, sloppiness: Sloppiness, verbose: bool) -> str:
    careless = sloppiness.right_hard if step.operation.hard else sloppiness.right
    right = sloppiness.right_verbose if verbose else careless
    if rng.random() < right:
        return step.line()
    return step.line(0 if rng.random() < sloppiness.first_slip else 1)
