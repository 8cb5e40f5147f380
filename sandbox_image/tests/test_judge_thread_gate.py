"""Threads of a program are bounded by the program's own number, whatever its user runs elsewhere on the node."""

import os
import subprocess
import sys
import threading
import time

import pytest
from judge_harness import OwnSlot

from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.worker import syscalls, thread_gate

ALLOW, ASK = 0x7FFF0000, 0x7FC00000
THREAD, PROCESS = 0x3D0F00, 17


def answer(program, arch, number, flags):
    """What the filter says of a call, by a small interpreter of BPF."""
    words, at, accumulator = {0: number, 4: arch, 16: flags & 0xFFFFFFFF}, 0, 0
    while True:
        operation, if_true, if_false, constant = program[at]
        at += 1
        if operation == 0x20:
            accumulator = words[constant]
        elif operation == 0x06:
            return constant
        else:
            at += if_true if (accumulator == constant if operation == 0x15 else accumulator & constant) else if_false


@pytest.mark.parametrize("machine", sorted(syscalls.AUDIT_ARCH))
def test_threads_alone_are_asked_about(machine):
    program, arch = thread_gate.assemble(machine), syscalls.AUDIT_ARCH[machine]
    clone = syscalls.allowed_numbers(machine)["clone"]
    assert answer(program, arch, clone, THREAD) == ASK
    assert answer(program, arch, clone, PROCESS) == ALLOW
    for number in range(syscalls.NEWEST_KNOWN + 1):
        if number != clone:
            assert answer(program, arch, number, THREAD) == ALLOW
    assert answer(program, 0x40000003, clone, THREAD) == ALLOW


GATED = """
import os, select, threading, time
from deepcoder_sandbox.worker import libc, seccomp, thread_gate
libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
gate = thread_gate.ThreadGate(os.open("/proc", os.O_PATH))
pid = os.fork()
if pid == 0:
    system_calls = seccomp.Filter()
    system_calls.inherited.load(0)
    system_calls.own.load(os.getpid())
    made = 0
    try:
        for _ in range(1000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); made += 1
    except RuntimeError: pass
    os._exit(made if made < 200 else 255)
ended, asked = os.pidfd_open(pid), 0
poller = select.poll()
poller.register(ended, select.POLLIN)
poller.register(gate.fileno(), select.POLLIN)
while ended not in dict(poller.poll(20000)):
    gate.answer(pid)
    asked += 1
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), asked)
"""


def test_gate_lets_as_many_threads_through_as_it_says():
    run = subprocess.run([sys.executable, "-c", GATED], capture_output=True, text=True, timeout=60, check=True)
    beside_the_first = thread_gate.MAX_THREADS - 1
    assert run.stdout.split() == [str(beside_the_first), str(beside_the_first + 1)]


BOMB = """
import os, threading, time
threading.stack_size(65536)
until, made = time.monotonic() + 4, 0
while time.monotonic() < until:
    try: threading.Thread(target=time.sleep, args=(10,), daemon=True).start(); made += 1
    except (RuntimeError, MemoryError): time.sleep(0.01)
print(1 < made <= 300, flush=True)
os._exit(0)
"""


def test_thread_bomb_in_one_slot_takes_no_thread_from_another(slot, judging, make):
    neighbour = judging if judging.slots > 1 else OwnSlot(Slot(slot.ensure_zygote().config, "neighbour"))
    bomb = make(BOMB, ("", "True"), time_limit_s=4)
    honest = make("import threading\nt = threading.Thread(target=print, args=(1,))\nt.start(); t.join()", ("", "1"))
    bombs, answers, beside = [], [], 0
    while beside < 3 and len(bombs) < 10:  # a busy machine may judge fewer beside one bomb
        bomb = bomb.model_copy(update={"id": os.urandom(8).hex()})
        thread = threading.Thread(target=lambda bomb=bomb: bombs.append(neighbour.judge(bomb, 1 << 20)))
        thread.start()
        time.sleep(1.5)
        while thread.is_alive() and len(answers) < 20:
            answers.append(judging.judge(honest.model_copy(update={"id": os.urandom(8).hex()}), 1 << 20).passed)
            beside += thread.is_alive()
        thread.join()
    if neighbour is not judging:
        neighbour.close()
    assert answers == [True] * len(answers)
    assert beside >= 3
    assert [bomb.passed for bomb in bombs] == [True] * len(bombs), bombs
