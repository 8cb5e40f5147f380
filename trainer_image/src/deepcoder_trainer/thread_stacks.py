"""Reports the stacks of a process's threads as text, for a caller that waits too long for an answer.

From outside, a rank that waits for another looks like one that computes, loads a model, or is gone. Only files, lines
and functions are reported, because the values of variables may be secret or large. While native code holds the
interpreter's lock, this cannot run either, and nothing is reported.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import isfunction
from pathlib import Path
from types import CodeType, FrameType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST_THREADS = 20
MOST_FRAMES = 40
"""Largest number of frames per thread, from the innermost outwards."""

_OURS = str(Path(__file__).parent)
_IMPORTING = "<frozen importlib"
"""Prefix of the frames of the import system, of which there are five for each import; they are left out."""
_calls: dict[int, tuple[str, float]] = {}
"""Thread id to the name of the method that it runs, and when it started."""


@dataclass(frozen=True)
class ActiveCall:
    """A method call that a thread is running."""

    call: str
    """Name of the method."""
    seconds: float
    """Seconds since it started."""
    at: str
    """The innermost line of our own code."""


@dataclass(frozen=True)
class ThreadStacks:
    """The state of a process's threads."""

    places: tuple[ActiveCall, ...]
    """The running calls; empty if the process waits for a call."""
    stacks: str
    """The stacks of all other threads, those with a running call first, each from its innermost frame outwards."""


def records_calls(cls: type[T]) -> type[T]:
    """Class decorator for an actor: records running public methods, so that `thread_stacks` can report them."""
    for name, method in list(vars(cls).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(cls, name, _noted(method))
    return cls


def _noted(method: Callable[P, T]) -> Callable[P, T]:
    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        thread = threading.get_ident()
        if thread in _calls:  # called by another recorded method, which is the one to report
            return method(*args, **kwargs)
        _calls[thread] = method.__name__, time.monotonic()
        try:
            return method(*args, **kwargs)
        finally:
            del _calls[thread]

    return call


def thread_stacks() -> ThreadStacks:
    """Return the stacks of this process's other threads."""
    calls, now = dict(_calls), time.monotonic()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    places, stacks = [], []
    for ident in sorted(frames, key=lambda ident: ident not in calls)[:MOST_THREADS]:
        title = f"thread {names.get(ident, ident)}"
        if ident in calls:
            call, since = calls[ident]
            places.append(ActiveCall(call, now - since, _innermost_of_ours(frames[ident])))
            title += f", which answers {call}"
        walked = [(frame.f_code, line) for frame, line in traceback.walk_stack(frames[ident])]
        lines = [f"  {_line(code, line)}" for code, line in walked if not code.co_filename.startswith(_IMPORTING)]
        stacks += [f"{title}:", *lines[:MOST_FRAMES]]
    return ThreadStacks(tuple(places), "\n".join(stacks))


def _innermost_of_ours(frame: FrameType) -> str:
    found = ((f.f_code, line) for f, line in traceback.walk_stack(frame) if f.f_code.co_filename.startswith(_OURS))
    return next((_line(code, line) for code, line in found if code.co_filename != __file__), "no line of ours")


def _line(code: CodeType, line: int) -> str:
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}:{line} in {code.co_name}"
