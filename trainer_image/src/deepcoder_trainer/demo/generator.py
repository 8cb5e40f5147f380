"""Draws demo problems from a seed: chains of one to six operations, with right programs and tests.

Everything is a function of (seed, number of problems). The held-out problems are drawn after the training problems and
share no statement with them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from deepcoder_contracts.judge import TestCase
from deepcoder_trainer.demo.families import FAMILIES, Family, Operation

MOST_STEPS = 6
"""Longest chain."""

TESTS_PER_PROBLEM = 4
"""Enough to tell a slip from the right program nearly always; few, since two cores judge them all."""

_DRAWS_BEFORE_ANOTHER_LENGTH = 64
"""Short chains are few; after so many repeats a longer chain is drawn instead."""


@dataclass(frozen=True)
class Step:
    """An operation with its digit."""

    operation: Operation
    k: int

    @property
    def phrase(self) -> str:
        """The phrase, with the digit in it."""
        return self.operation.phrase.replace("{k}", str(self.k))

    def line(self, slip: int | None = None) -> str:
        """The right line, or the slip of this number."""
        text = self.operation.line if slip is None else self.operation.slips[slip]
        return text.replace("{k}", str(self.k))


@dataclass(frozen=True)
class Chain:
    """A problem: read, do the steps in order, print."""

    family: Family
    steps: tuple[Step, ...]
    output: Step

    @property
    def statement(self) -> str:
        """The problem as it is asked."""
        return "; ".join([self.family.opening, *(s.phrase for s in self.steps), self.output.phrase]) + "."

    def program(self) -> str:
        """A right program."""
        return "\n".join([self.family.read, *(s.line() for s in self.steps), self.output.line()])

    def answer(self, value: object) -> str:
        """What a right program prints for a value, by the operations' meaning."""
        for step in (*self.steps, self.output):
            value = step.operation.apply(value, step.k)
        return f"{value}\n"


def draw_chain(rng: random.Random, length: int) -> Chain:
    """A chain of `length` different operations."""
    family = rng.choice(FAMILIES)
    steps = tuple(Step(operation, rng.randint(2, 9)) for operation in rng.sample(family.operations, length))
    return Chain(family, steps, Step(rng.choice(family.outputs), 0))


def draw_tests(chain: Chain, rng: random.Random) -> list[TestCase]:
    """Random inputs with the answers that the operations' meaning gives."""
    tests = []
    for _ in range(TESTS_PER_PROBLEM):
        text, value = chain.family.draw_input(rng)
        tests.append(TestCase(input=text + "\n", output=chain.answer(value)))
    return tests


def distinct_chains(rng: random.Random) -> Iterator[Chain]:
    """Chains without end, lengths in equal shares as far as there are that many, no statement twice."""
    seen: set[str] = set()
    while True:
        length, draws = rng.randint(1, MOST_STEPS), 0
        while (chain := draw_chain(rng, length)).statement in seen:
            draws += 1
            if draws % _DRAWS_BEFORE_ANOTHER_LENGTH == 0:
                length = length % MOST_STEPS + 1
        seen.add(chain.statement)
        yield chain
