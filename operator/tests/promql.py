"""As much of PromQL as the chart's alerts use, so that each can be tried where there is no Prometheus.

Sums, maxima and counts by labels, increase, rate, delta, changes, max_over_time and absent, comparisons, quotients,
`unless`, `and on`, `or`, `offset`, selectors with `=`, `=~` and `!~`, and what rules record. Increases are extrapolated
to the range's ends as Prometheus does. What is not understood is an error.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

MINUTE = 60.0
LOOKBACK_SECONDS = 300.0

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Series = dict[tuple[str, Labels], list[float | None]]
"""A value each minute, from minute 0 on; None where there is none, NaN where Prometheus knows that it has ended."""

_TOKEN = re.compile(r'\s*("[^"]*"|=~|!~|[<>=!]=|[a-zA-Z_][\w:]*|\d+(?:\.\d+)?[mh]?|[-+*/<>(){},\[\]=])')
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, ">": operator.gt, "==": operator.eq,
}  # fmt: skip
_AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {
    "sum": sum, "max": max, "count": lambda values: float(len(values)),
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan,
}
_MATCHES: dict[str, Callable[[str, str], bool]] = {
    "=": operator.eq,
    "=~": lambda value, pattern: re.fullmatch(pattern, value) is not None,
    "!~": lambda value, pattern: re.fullmatch(pattern, value) is None,
}


def parsed_series(text: str, values: str) -> tuple[tuple[str, Labels], list[float | None]]:
    """A series in promtool's notation: `a`, `a+bxn` and `axn`, which stand for n + 1 values, and `_xn`, n gaps."""
    name, _, matchers = text.partition("{")
    labels = frozenset(re.findall(r'(\w+)="([^"]*)"', matchers))
    points: list[float | None] = []
    for part in values.split():
        if part.startswith("_x"):
            points += [None] * int(part.removeprefix("_x"))
            continue
        found = re.fullmatch(r"(\d+)(?:\+(\d+))?(?:x(\d+))?", part)
        if found is None:
            raise ValueError(f"{part} is no notation of values")
        first, step, times = (int(g or 0) for g in found.groups())
        points += [float(first + step * i) for i in range(times + 1)]
    return (name, labels), points


def fired(expression: str, seconds: float, series: Series, minute: int) -> set[Labels]:
    """The labels for which an alert that waits for so long fires at this minute."""
    since: dict[Labels, int] = {}
    for now in range(minute + 1):
        there = evaluate(expression, series, now * MINUTE)
        since = {labels: since.get(labels, now) for labels in there}
    return {labels for labels, start in since.items() if (minute - start) * MINUTE >= seconds}


def recorded(rules: Mapping[str, str], series: Series, minute: int) -> Series:
    """Series, and those that rules record of them until this minute: expressions by the name of what they record."""
    out = dict(series)
    for name, expression in rules.items():
        found = [evaluate(expression, out, now * MINUTE) for now in range(minute + 1)]
        for labels in {labels for there in found for labels in there}:
            out[name, labels] = [there.get(labels, math.nan) for there in found]
    return out


def seconds_of(text: str) -> float:
    """Of 5m, 1h."""
    return float(text[:-1]) * {"m": 60, "h": 3600}[text[-1]]


def evaluate(expression: str, series: Series, now: float) -> Vector:
    """What an expression is at a time."""
    parser = _Parser(_tokens(expression), series, now)
    found = parser.unless()
    if parser.rest or not isinstance(found, dict):
        raise ValueError(f"not understood from {parser.rest[:3]} on: {expression}")
    return found


def _tokens(text: str) -> list[str]:
    out, at = [], 0
    text = text.strip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"not understood: {text[at:]}")
        out.append(found.group(1))
        at = found.end()
    return out


@dataclass
class _Parser:
    """Evaluates while it reads."""

    rest: list[str]
    series: Series
    now: float

    def take(self, expected: str | None = None) -> str:
        token = self.rest.pop(0)
        if expected is not None and token != expected:
            raise ValueError(f"{expected} was expected, not {token}")
        return token

    def next(self, *tokens: str) -> bool:
        return bool(self.rest) and self.rest[0] in tokens

    def unless(self) -> Vector | float:
        left = self.comparison()
        while self.next("unless", "and", "or"):
            how = self.take()
            on = self.on() if how == "and" else None
            right = self.unless() if how == "or" else self.comparison()  # `or` binds less than the others
            if not isinstance(left, dict) or not isinstance(right, dict):
                raise ValueError("unless, and and or are of vectors")
            if how == "or":
                left = right | left
            elif on is None:
                left = {labels: value for labels, value in left.items() if labels not in right}
            else:
                there = {_only(labels, on) for labels in right}
                left = {labels: value for labels, value in left.items() if _only(labels, on) in there}
        return left

    def on(self) -> set[str]:
        """The labels by which two vectors are compared."""
        self.take("on")
        return self.names()

    def comparison(self) -> Vector | float:
        left = self.product()
        while self.next(*_COMPARISONS):
            holds = _COMPARISONS[self.take()]
            left = {labels: a for labels, (a, b) in _pairs(left, self.product()).items() if holds(a, b)}
        return left

    def product(self) -> Vector | float:
        left = self.term()
        while self.next(*_ARITHMETIC):
            apply = _ARITHMETIC[self.take()]
            left = {labels: apply(a, b) for labels, (a, b) in _pairs(left, self.term()).items()}
        return left

    def term(self) -> Vector | float:
        token = self.take()
        if token[0].isdigit():
            return float(token)
        if token == "(":
            inner = self.unless()
            self.take(")")
            return inner
        if token in _AGGREGATIONS:
            return self.aggregate(_AGGREGATIONS[token])
        if token in ("increase", "rate", "delta", "changes", "max_over_time"):
            self.take("(")
            found = self.over_range(self.take(), token)
            self.take(")")
            return found
        if token == "absent":
            self.take("(")
            inner = self.unless()
            self.take(")")
            return {} if inner else {frozenset(): 1.0}
        found = self.points(token, self.matchers(), LOOKBACK_SECONDS, self.now)
        last = {labels: points[-1][1] for labels, points in found.items()}
        return {labels: value for labels, value in last.items() if not math.isnan(value)}

    def aggregate(self, combine: Callable[[list[float]], float]) -> Vector:
        by: set[str] = set()
        if self.next("by"):
            self.take()
            by = self.names()
        self.take("(")
        inner = self.unless()
        self.take(")")
        if not isinstance(inner, dict):
            raise ValueError("an aggregation is of a vector")
        groups: dict[Labels, list[float]] = {}
        for labels, value in inner.items():
            groups.setdefault(_only(labels, by), []).append(value)
        return {labels: combine(values) for labels, values in groups.items()}

    def names(self) -> set[str]:
        """Names of labels, in parentheses."""
        found = set()
        self.take("(")
        while not self.next(")"):
            found.add(self.take())
            if self.next(","):
                self.take()
        self.take(")")
        return found

    def over_range(self, name: str, function: str) -> Vector:
        matchers = self.matchers()
        self.take("[")
        seconds = seconds_of(self.take())
        self.take("]")
        end = self.now
        if self.next("offset"):
            self.take()
            end -= seconds_of(self.take())
        out: Vector = {}
        for labels, points in self.points(name, matchers, seconds, end).items():
            if function == "max_over_time":
                out[labels] = max(value for _, value in points)
            elif function == "changes":
                out[labels] = float(sum(a[1] != b[1] for a, b in pairwise(points)))
            elif len(points) > 1:
                found = _extrapolated(points, end - seconds, end, counter=function != "delta")
                out[labels] = found / seconds if function == "rate" else found
        return out

    def matchers(self) -> list[tuple[str, str, str]]:
        found = []
        if self.next("{"):
            self.take()
            while not self.next("}"):
                found.append((self.take(), self.take(), self.take().strip('"')))
                if self.next(","):
                    self.take()
            self.take("}")
        return found

    def points(
        self, name: str, matchers: list[tuple[str, str, str]], seconds: float, end: float
    ) -> dict[Labels, list[tuple[float, float]]]:
        """Of each series that matches, what was seen in the seconds before the end, the first excluded."""
        out = {}
        for (series, labels), values in self.series.items():
            if series != name or not all(_MATCHES[how](dict(labels).get(k, ""), v) for k, how, v in matchers):
                continue
            times = ((i * MINUTE, v) for i, v in enumerate(values) if end - seconds < i * MINUTE <= end)
            seen = [(at, value) for at, value in times if value is not None]
            if seen:
                out[labels] = seen
        return out


def _only(labels: Labels, names: set[str]) -> Labels:
    return frozenset(label for label in labels if label[0] in names)


def _pairs(left: Vector | float, right: Vector | float) -> dict[Labels, tuple[float, float]]:
    if isinstance(left, dict) and isinstance(right, dict):
        return {labels: (value, right[labels]) for labels, value in left.items() if labels in right}
    if isinstance(left, dict) and not isinstance(right, dict):
        return {labels: (value, right) for labels, value in left.items()}
    if isinstance(right, dict) and not isinstance(left, dict):
        return {labels: (left, value) for labels, value in right.items()}
    raise ValueError("two numbers are compared")


def _extrapolated(points: list[tuple[float, float]], start: float, end: float, counter: bool) -> float:
    (first_at, first), (last_at, last) = points[0], points[-1]
    found = last - first
    if counter:
        found += sum(a[1] for a, b in pairwise(points) if b[1] < a[1])
    sampled = last_at - first_at
    between = sampled / (len(points) - 1)
    before, after = first_at - start, end - last_at
    before = before if before < between * 1.1 else between / 2
    after = after if after < between * 1.1 else between / 2
    if counter and found > 0 and first >= 0:
        before = min(before, sampled * first / found)
    return found * (sampled + before + after) / sampled
