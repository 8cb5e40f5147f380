"""What pid 1 of a container has to do, where the server is the container's program: reap, and pass signals on.

A runner whose zygote was killed becomes a child of pid 1, and stays a zombie unless it waits for it. The server cannot
wait for children that it does not know without taking their status from those who do, so it runs as a child of its own.
When pid 1 leaves, the kernel ends whatever is left.
"""

from __future__ import annotations

import contextlib
import os
import signal

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def split_off() -> int | None:
    """Where this is pid 1, fork: None in the child, which goes on; its exit status here, once it has ended.

    Elsewhere just None. To be called before there are threads.
    """
    if os.getpid() != 1:
        return None
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # pid 1 would ignore what comes before it handles it
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return None
    return _stand_over(child)


def _stand_over(child: int) -> int:
    """Pass signals on to `child` and reap whatever ends, until it does; return its exit status, as a shell tells it."""

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
