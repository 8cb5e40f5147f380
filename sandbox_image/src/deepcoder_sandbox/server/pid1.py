"""The duties of pid 1, if the server is the container's main program: reap children, and pass signals on.

A runner whose zygote was killed becomes a child of pid 1, and stays a zombie until pid 1 waits for it. If the server
waited for children that it does not know, it would take their status from the code that does. So pid 1 runs the server
as its child. When pid 1 exits, the kernel ends whatever is left.
"""

from __future__ import annotations

import contextlib
import os
import signal

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def split_off() -> int | None:
    """If this is pid 1, fork: return None in the child, which goes on, and its exit status here, once it has ended.

    Otherwise just return None. Call it before there are threads.
    """
    if os.getpid() != 1:
        return None
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # pid 1 ignores signals until it handles them
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return None
    return _stand_over(child)


def _stand_over(child: int) -> int:
    """Pass signals on to `child` and reap whatever ends, until `child` does; return its exit status as a shell does."""

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
