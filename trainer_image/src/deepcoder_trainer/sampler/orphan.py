"""Ends a process of vLLM whose parent is gone.

A sampler that is lost is killed and replaced on the same GPU. Its engine core is a child of that process, and vLLM 0.32
does not tell it: it would wait for requests for good, in the GPU memory that the replacement needs. (vLLM's workers
follow their engine core, if they are processes of their own.) PR_SET_PDEATHSIG is no help: it fires when the *thread*
ends that started the child. So a thread waits for the end of the parent, which multiprocessing shows as a file
descriptor. It cannot run while native code holds the interpreter; such a process stays until that code returns.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess


def end_with_parent() -> None:
    """Kill this process as soon as its parent has ended, or now if it has. Does nothing if multiprocessing did not
    start this process, or if it has been called in this process before."""
    _watch(os.getpid())


@functools.cache
def _watch(_process: int) -> None:
    """Once a process: a forked one finds its parent's answer for another id."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="parent watch", daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # nothing here is to be saved, and an engine that hangs ends by nothing else
