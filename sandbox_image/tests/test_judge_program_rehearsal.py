"""The rehearsal of zygotes with one process per test: programs find nothing of it, and a wrong answer is an error."""

from __future__ import annotations

import json
import subprocess
import sys

from deepcoder_contracts.judge import Verdict

_LOOK = """
import gc, os, sys
solution = [found for found in gc.get_objects() if isinstance(found, type) and found.__name__ == "Solution"]
opened = []
for number in range(3, 64):
    try:
        os.fstat(number)
        opened.append(number)
    except OSError:
        pass
print(solution, opened, [name for name in ("solve", "main", "deque", "Solution") if name in globals()])
print(sys.modules.get("solution"), sys.stdin.name, sys.stdout.name, sys.stdin.buffer.tell(), sys.argv)
print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.getrecursionlimit(), gc.isenabled())
"""
_FOUND = "[] [3] []\nNone <stdin> <stdout> 0 ['main.py']\nTrue True 1000 True"

_REHEARSING = """
import json, os, sys
from deepcoder_sandbox.worker import dry_run, program_rehearsal
from deepcoder_sandbox.worker.confine import Confinement

def state():
    opened = {number: os.readlink(f"/proc/self/fd/{number}") for number in range(3)}
    return [opened, sorted(os.listdir("/proc/self/fd"))[:-1], sorted(sys.modules), sys.stdin.name, sys.stdout.name]

if len(sys.argv) > 1:
    source, fn_name, given, _ = dry_run.SAMPLES[int(sys.argv[1])]
    dry_run.SAMPLES = ((source, fn_name, given, b"4"),)
before = state()
program_rehearsal.prepare_zygote(Confinement.harmless(confined=True))
print(json.dumps([before, state()]))
"""


def _rehearse(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _REHEARSING, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)


def test_program_finds_nothing_of_what_its_zygote_rehearsed(judge):
    answer = judge(_LOOK, ("", _FOUND), ("", _FOUND))  # the first compiles it, the second loads it
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.PASSED] * 2, answer


def test_rehearsal_gives_back_descriptors_modules_and_streams():
    done = _rehearse()
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert after == before


def test_sample_that_is_answered_wrongly_keeps_the_zygote_from_starting():
    for sample in ("0", "1"):
        done = _rehearse(sample)
        assert "RuntimeError: a sample was answered by" in done.stderr
