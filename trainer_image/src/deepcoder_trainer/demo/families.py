"""The families of demo problems: operations, and the line of Python that does each.

A problem is a chain: read something, do one to six things to it, print something. Each operation has its meaning
(`apply`, from which expected outputs are computed), the line of a right program, and slips, which are lines that a
careless programmer might write instead. A slip usually runs and is usually wrong, so only running the program shows it.
No two operations of a family share a line, right or wrong. So a line always tells which phrase it answers, and a tiny
model can learn to go through a problem phrase by phrase. `hard` operations are those that the warm-started model gets
wrong more often than not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Value = Any
"""The value that a chain transforms: a list of integers, a list of words, or an integer."""


@dataclass(frozen=True)
class Operation:
    """One step of a chain, or its output."""

    phrase: str
    """Its phrase in the problem; `{k}` stands for a digit."""
    line: str
    """The correct line; `{k}` as in the phrase."""
    slips: tuple[str, ...]
    """Wrong lines, most likely first."""
    apply: Callable[[Value, int], Value]
    """Its meaning: (value, k) to value."""
    hard: bool = False


@dataclass(frozen=True)
class Family:
    """Problems over one type of input."""

    name: str
    opening: str
    """First phrase of the problem."""
    read: str
    """The line that reads the input."""
    operations: tuple[Operation, ...]
    outputs: tuple[Operation, ...]
    draw_input: Callable[[random.Random], tuple[str, Value]]
    """Draws an input: its text, and the value that the program reads from it."""


def _op(
    phrase: str, line: str, slips: tuple[str, ...], apply: Callable[[Value, int], Value], hard: bool = False
) -> Operation:
    return Operation(phrase, line, slips, apply, hard)


def _unique(values: list[Value]) -> list[Value]:
    return list(dict.fromkeys(values))


# fmt: off
_INTEGER_OPERATIONS = (
    _op("keep the even ones", "a=[x for x in a if x%2==0]",
        ("a=[x for x in a if x%2]", "a=[x for x in a if x//2==0]"), lambda a, k: [x for x in a if x % 2 == 0]),
    _op("keep the odd ones", "a=[x for x in a if x%2==1]",
        ("a=[x for x in a if x%2>1]", "a=[x for x in a if x//2]"), lambda a, k: [x for x in a if x % 2 == 1]),
    _op("keep those above {k}", "a=[x for x in a if x>{k}]",
        ("a=[x for x in a if x>={k}]", "a=[x for x in a if x<{k}]"), lambda a, k: [x for x in a if x > k]),
    _op("double each", "a=[x*2 for x in a]", ("a=a*2", "a=[x**2 for x in a]"), lambda a, k: [x * 2 for x in a]),
    _op("square each", "a=[x*x for x in a]", ("a=[x^2 for x in a]", "a=[x+x for x in a]"),
        lambda a, k: [x * x for x in a]),
    _op("add {k} to each", "a=[x+{k} for x in a]", ("a=a+[{k}]", "a=[{k}*x for x in a]"),
        lambda a, k: [x + k for x in a]),
    _op("take {k} from each", "a=[x-{k} for x in a]", ("a=[{k}-x for x in a]", "a=[x//{k} for x in a]"),
        lambda a, k: [x - k for x in a], hard=True),
    _op("sort upwards", "a=sorted(a)", ("a=sorted(a,key=abs)", "a=sorted(a,key=str)"), lambda a, k: sorted(a)),
    _op("sort downwards", "a=sorted(a)[::-1]", ("a=a[::-1]", "a=sorted(a)[:-1]"),
        lambda a, k: sorted(a, reverse=True)),
    _op("drop the first", "a=a[1:]", ("a=a[:-1]", "a=a[:1]"), lambda a, k: a[1:]),
    _op("drop repeats", "a=list(dict.fromkeys(a))", ("a=sorted(set(a))", "a=[x for x in a if a.count(x)==1]"),
        lambda a, k: _unique(a), hard=True),
)

_INTEGER_OUTPUTS = (
    _op("print the sum", "print(sum(a))", ("print(len(a))", "print(max(a))"), lambda a, k: sum(a)),
    _op("print how many", "print(len(a))", ("print(sum(a))", "print(a)"), lambda a, k: len(a)),
    _op("print the largest or 0", "print(max(a,default=0))", ("print(min(a,default=0))", "print(len(a))"),
        lambda a, k: max(a, default=0)),
    _op("print all", "print(*a)", ("print(a)", "print(len(a))"), lambda a, k: " ".join(map(str, a))),
)

_WORD_OPERATIONS = (
    _op("reverse each", "a=[w[::-1] for w in a]", ("a=[w[:-1] for w in a]", "a=[w[1:] for w in a]"),
        lambda a, k: [w[::-1] for w in a]),
    _op("write each in capitals", "a=[w.upper() for w in a]", ("a=[w.title() for w in a]", "a=[w.lower() for w in a]"),
        lambda a, k: [w.upper() for w in a]),
    _op("keep words over {k} letters", "a=[w for w in a if len(w)>{k}]",
        ("a=[w for w in a if len(w)>={k}]", "a=[w for w in a if len(w)<{k}]"),
        lambda a, k: [w for w in a if len(w) > k]),
    _op("double each word", "a=[w+w for w in a]", ("a=a+a", "a=[w*3 for w in a]"), lambda a, k: [w + w for w in a]),
    _op("sort by letters", "a=sorted(a)", ("a=sorted(set(a))", "a=sorted(a)[::-1]"), lambda a, k: sorted(a)),
    _op("sort by length", "a=sorted(a,key=len)", ("a=sorted(a,key=max)", "a=sorted(a,key=len)[::-1]"),
        lambda a, k: sorted(a, key=len), hard=True),
    _op("drop the first word", "a=a[1:]", ("a=a[:-1]", "a=a[:1]"), lambda a, k: a[1:]),
)

_WORD_OUTPUTS = (
    _op("print them", "print(*a)", ("print(a)", "print(len(a))"), lambda a, k: " ".join(a)),
    _op("print the number of letters", "print(sum(map(len,a)))", ("print(len(a))", "print(max(map(len,a)))"),
        lambda a, k: sum(map(len, a))),
    _op("print all as one word", "print(''.join(a))", ("print(*a)", "print('-'.join(a))"), lambda a, k: "".join(a)),
)

_NUMBER_OPERATIONS = (
    _op("add {k}", "n=n+{k}", ("n=n|{k}", "n=n+{k}+1"), lambda n, k: n + k),
    _op("take away {k}", "n=n-{k}", ("n={k}-n", "n=n-{k}-1"), lambda n, k: n - k),
    _op("multiply by {k}", "n=n*{k}", ("n=n<<{k}", "n=n*{k}*2"), lambda n, k: n * k),
    _op("halve it downwards", "n=n//2", ("n=n/2", "n=n%2"), lambda n, k: n // 2, hard=True),
    _op("take the remainder by {k}", "n=n%{k}", ("n=n//{k}", "n=n%{k}+1"), lambda n, k: n % k),
    _op("square it", "n=n*n", ("n=n^2", "n=2*n"), lambda n, k: n * n),
    _op("make it absolute", "n=abs(n)", ("n=-n", "n=max(n,0)"), lambda n, k: abs(n)),
)

_NUMBER_OUTPUTS = (
    _op("print it", "print(n)", ("print(-n)", "print(n+1)"), lambda n, k: n),
    _op("print its digit sum", "print(sum(map(int,str(abs(n)))))",
        ("print(len(str(abs(n))))", "print(sum(map(int,str(n))))"), lambda n, k: sum(int(c) for c in str(abs(n))),
        hard=True),
    _op("print whether it is even", "print('no' if n%2 else 'yes')", ("print('yes' if n%2 else 'no')", "print(n%2)"),
        lambda n, k: "yes" if n % 2 == 0 else "no"),
)

_WORDS = [
    "ant", "bee", "cat", "dog", "owl", "elk", "frog", "goat", "hare", "lynx", "mole", "newt", "seal", "swan",
    "toad", "wolf", "bison", "camel", "eagle", "hyena", "koala", "llama", "moose", "otter", "panda", "raven",
    "shark", "sloth", "tiger", "zebra",
]
# fmt: on


def _draw_integers(rng: random.Random) -> tuple[str, Value]:
    # A small range, so that repeats, zeros and both signs all occur.
    values = [rng.randint(-12, 20) for _ in range(rng.randint(6, 14))]
    return " ".join(map(str, values)), values


def _draw_words(rng: random.Random) -> tuple[str, Value]:
    words = [rng.choice(_WORDS) for _ in range(rng.randint(5, 10))]
    words += rng.sample(words, 2)
    return " ".join(words), words


def _draw_number(rng: random.Random) -> tuple[str, Value]:
    value = rng.randint(-99, 99)
    return str(value), value


FAMILIES = (
    Family(
        "integers",
        "Read integers",
        "a=list(map(int,input().split()))",
        _INTEGER_OPERATIONS,
        _INTEGER_OUTPUTS,
        _draw_integers,
    ),
    Family("words", "Read words", "a=input().split()", _WORD_OPERATIONS, _WORD_OUTPUTS, _draw_words),
    Family("number", "Read a number", "n=int(input())", _NUMBER_OPERATIONS, _NUMBER_OUTPUTS, _draw_number),
)
"""All families. A seed's result depends on their order and sizes."""
