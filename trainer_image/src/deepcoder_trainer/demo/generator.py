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
"""Largest number of operations in a chain."""

TESTS_PER_PROBLEM = 4
"""Tests per problem: enough to reveal a slip nearly always, and few enough for two cores to judge."""

_DRAWS_BEFORE_ANOTHER_LENGTH = 64
"""Number of repeated draws after which a longer chain is drawn, because there are few short chains."""


@dataclass(frozen=True)
class Step:
    """An operation with its digit."""

    operation: Operation
    k: int

    @property
    def phrase(self) -> str:
        """The phrase with its digit."""
        return self.operation.phrase.replace("{k}", str(self.k))

    def line(self, slip: int | None = None) -> str:
        """Return the correct line, or the slip of this number."""
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
        """The problem's statement."""
        return "; ".join([self.family.opening, *(s.phrase for s in self.steps), self.output.phrase]) + "."

    def program(self) -> str:
        """Return a correct program."""
        return "\n".join([self.family.read, *(s.line() for s in self.steps), self.output.line()])

    def answer(self, value: object) -> str:
        """Return what a correct program prints for a value, computed from the operations' meaning."""
        for step in (*self.steps, self.output):
            value = step.operation.apply(value, step.k)
        return f"{value}\n"


def draw_chain(rng: random.Random, length: int) -> Chain:
    """Draw a chain of `length` different operations."""
    family = rng.choice(FAMILIES)
    steps = tuple(Step(operation, rng.randint(2, 9)) for operation in rng.sample(family.operations, length))
    return Chain(family, steps, Step(rng.choice(family.outputs), 0))


def draw_tests(chain: Chain, rng: random.Random) -> list[TestCase]:
    """Draw random inputs, with outputs computed from the operations' meaning."""
    tests = []
    for _ in range(TESTS_PER_PROBLEM):
        text, value = chain.family.draw_input(rng)
        tests.append(TestCase(input=text + "\n", output=chain.answer(value)))
    return tests


def distinct_chains(rng: random.Random) -> Iterator[Chain]:
    """Yield chains without end and without repeated statements. Lengths are equally likely while chains last."""
    seen: set[str] = set()
    while True:
        length, draws = rng.randint(1, MOST_STEPS), 0
        while (chain := draw_chain(rng, length)).statement in seen:
            draws += 1
            if draws % _DRAWS_BEFORE_ANOTHER_LENGTH == 0:
                length = length % MOST_STEPS + 1
        seen.add(chain.statement)
        yield chain
