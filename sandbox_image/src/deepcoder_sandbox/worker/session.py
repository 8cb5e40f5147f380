"""One process a submission: prepare the program once, then run it for each test that the judge asks for.

The judge sends one packet a test over the control socket, after putting the input into a memory file; the answer is one
packet, and the output in another. The judge compares before it asks for the next, so the first failure stops the rest.
Whatever a hostile program sends instead is only another claim about its own output. The judge keeps the time: it has
the alarm rung at the limit, and ends what does not hear it.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, NoReturn

from deepcoder_sandbox.worker import livecodebench, program, values

NULL_IN, NULL_OUT, NULL_ERROR, CONTROL, CODE, INPUT, OUTPUT = range(7)
"""Descriptors of a session's runner."""

_PACKET_BYTES = 1 << 12
_MAX_DETAIL = 300


def run(fn_name: str | None) -> NoReturn:
    """Serve tests until the judge hangs up or the program ends the process."""
    status = 1
    try:
        _serve(fn_name)
        status = 0
    finally:
        os._exit(status)


def _serve(fn_name: str | None) -> None:
    source = program.read_all(CODE).decode()
    alarm = livecodebench.Alarm()
    _send(started=True)  # from here on the judge knows this process, and keeps its time
    livecodebench.guard(source)
    alarm.set()
    try:
        called = livecodebench.load(source, alarm, fn_name)
    except Exception as error:
        alarm.clear()
        _send(prepared=False, compile=isinstance(error, SyntaxError), **_describe(error))
        return
    _send(prepared=True)
    while (size := _next_test()) is not None:
        text = program.read_all(INPUT, size).decode()
        answer = _call(called, text, alarm) if fn_name else _run_once(called, text, alarm)
        _send(**answer)


def _next_test() -> int | None:
    """Return how long the next test's input is, None at the end."""
    packet = os.read(CONTROL, _PACKET_BYTES)
    return int(packet) if packet else None


def _send(**fields: Any) -> None:
    os.write(CONTROL, json.dumps(fields).encode())


def _run_once(called: Any, text: str, alarm: livecodebench.Alarm) -> dict[str, Any]:
    """Call the wrapped program; leaving with SystemExit is as good as returning."""
    with livecodebench.StandInForStdio(text) as captured:
        alarm.set()
        try:
            with contextlib.suppress(SystemExit):
                called()
            alarm.clear()
        except Exception as error:
            alarm.clear()
            return _failure(error)
        finally:
            alarm.clear()
    return _put(captured.getvalue().encode("utf-8", "surrogatepass"))


def _call(called: Any, text: str, alarm: livecodebench.Alarm) -> dict[str, Any]:
    alarm_set = False
    try:
        given = livecodebench.arguments(text)
        alarm.set()
        alarm_set = True
        returned = called(*given)
        alarm.clear()
    except Exception as error:
        alarm.clear()
        return _failure(error) if alarm_set else {"collapsed": True, **_describe(error)}
    return _put(values.encode(returned))


def _put(output: bytes) -> dict[str, Any]:
    os.ftruncate(OUTPUT, 0)
    os.lseek(OUTPUT, 0, os.SEEK_SET)
    program.write_all(OUTPUT, output)
    return {"bytes": len(output)}


def _failure(error: Exception) -> dict[str, Any]:
    """How an exception counts; one whose own repr fails takes the whole result down with it."""
    try:
        shown = repr(error)
    except Exception as worse:
        return {"collapsed": True, **_describe(worse)}
    timed_out = "timeoutexception" in shown.lower()
    return {"timed_out": timed_out, "memory": isinstance(error, MemoryError), "detail": shown[:_MAX_DETAIL]}


def _describe(error: Exception) -> dict[str, Any]:
    try:
        detail = f"{type(error).__name__}: {error}"[:_MAX_DETAIL]
    except Exception:
        detail = type(error).__name__[:_MAX_DETAIL]
    return {"detail": detail, "memory": isinstance(error, MemoryError)}
