"""The stacks of a process's threads as text, for a caller that waits for its answer in vain.

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
"""Kept of a thread's, from the innermost outwards."""

_OURS = str(Path(__file__).parent)
_IMPORTING = "<frozen importlib"
"""Files of the frames between an import and what it imports, five of them each time."""
_calls: dict[int, tuple[str, float]] = {}
"""The call that a thread answers, and since when."""


@dataclass(frozen=True)
class ActiveCall:
    """What a thread is at that answers a call."""

    call: str
    """Its name."""
    seconds: float
    """For how long."""
    at: str
    """The innermost line of our own."""


@dataclass(frozen=True)
class ThreadStacks:
    """What a process is at."""

    places: tuple[ActiveCall, ...]
    """Of the threads that answer a call; none where it waits to be called."""
    stacks: str
    """Of these and of its other threads, each from its innermost frame outwards."""


def records_calls(cls: type[T]) -> type[T]:
    """An actor's class, of whose public methods `thread_stacks` tells which are at work."""
    for name, method in list(vars(cls).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(cls, name, _noted(method))
    return cls


def _noted(method: Callable[P, T]) -> Callable[P, T]:
    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        thread = threading.get_ident()
        if thread in _calls:  # by another of its methods, which is what was asked for
            return method(*args, **kwargs)
        _calls[thread] = method.__name__, time.monotonic()
        try:
            return method(*args, **kwargs)
        finally:
            del _calls[thread]

    return call


def thread_stacks() -> ThreadStacks:
    """Where this process's other threads are."""
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
