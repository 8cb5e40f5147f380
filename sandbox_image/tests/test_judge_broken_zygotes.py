"""Zygotes that are broken from within: by a module that they load before they serve, as no program can.

Whatever they do, no program is blamed: the slot starts another zygote, and where that is broken too, says `error`.
"""

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcoder_contracts.judge import Verdict
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.observer import Observer, Recycled
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig

HELPER = """
import os, sys
def replace(name, new):  # wherever it is bound already
    old = getattr(os, name)
    for module in list(sys.modules.values()):
        if getattr(module, name, None) is old:
            setattr(module, name, new)
def replace_fork(new):
    sys.modules["deepcoder_sandbox.worker.zygote"].fork = new
def only_in_runners(call, fail, zygote=os.getpid()):  # what a zygote cannot do itself, it cannot rehearse
    return lambda *given: (call if os.getpid() == zygote else fail)(*given)
"""
BREAKAGES = {
    "fork that is refused": """
replace_fork(lambda: -1)
""",
    "descriptors that have run out": """
import errno, os
def refuse(*_):
    raise OSError(errno.EMFILE, "Too many open files")
replace("pidfd_open", refuse)
""",
    "memory that has run out": """
def refuse():
    raise MemoryError
replace_fork(refuse)
""",
    "answer that is cut": """
import socket
class Cut(socket.socket):
    served = 0
    def send(self, data, *rest):
        Cut.served += 1
        return super().send(data if Cut.served == 1 else data[:-2], *rest)
socket.socket = Cut
""",
    "answer that is none": """
import socket
class Odd(socket.socket):
    served = 0
    def send(self, data, *rest):
        Odd.served += 1
        return super().send(data if Odd.served == 1 else b'[1, 2]', *rest)
socket.socket = Odd
""",
    "answer to another question": """
import socket
class Odd(socket.socket):
    served = 0
    def send(self, data, *rest):
        Odd.served += 1
        return super().send(data if Odd.served == 1 else b'{"colour": "blue"}', *rest)
socket.socket = Odd
""",
    "leaving in the middle": """
import os
def leave():
    os._exit(0)
replace_fork(leave)
""",
}
NOT_STARTED = {
    "program that cannot be read": """
import errno, os
def refuse(*_):
    raise OSError(errno.EIO, "Input/output error")
replace("pread", only_in_runners(os.pread, refuse))
""",
    "code object that cannot be written": """
import errno, os
def refuse(*_):
    raise OSError(errno.ENOMEM, "Cannot allocate memory")
replace("lseek", only_in_runners(os.lseek, refuse))
""",
    "code object that cannot be sealed": """
import errno, fcntl
def seal(descriptor, command, *rest, call=fcntl.fcntl):
    if command == fcntl.F_ADD_SEALS:
        raise OSError(errno.EBUSY, "Device or resource busy")
    return call(descriptor, command, *rest)
fcntl.fcntl = only_in_runners(fcntl.fcntl, seal)
""",
    "code object that is none": """
import marshal
def fail(*_):
    raise KeyError("a defect")
marshal.dumps = only_in_runners(marshal.dumps, fail)
""",
}
NO_CLAIM = """
import errno, os
zygote = os.getpid()
def refuse(descriptor, data, call=os.write):
    if descriptor == 3 and os.getpid() != zygote:
        raise OSError(errno.EIO, "Input/output error")
    return call(descriptor, data)
replace("write", refuse)
"""
HANGS = """
import time
def hang():
    time.sleep(3600)
replace_fork(hang)
"""
ONCE = """
import pathlib
mark = pathlib.Path({mark!r})
if not mark.exists():
    mark.touch()
    exec({breakage!r})
"""


@pytest.fixture
def broken_slot(tmp_path):
    """Make a slot whose zygotes are broken as the code says, `once` only the first of them."""
    slots, reasons = [], []

    def make(breakage, once=False):
        breakage = HELPER + breakage
        code = ONCE.format(mark=str(tmp_path / "mark"), breakage=breakage) if once else breakage
        (tmp_path / "breaks_a_zygote.py").write_text(code)
        config = ZygoteConfig(packages=(str(tmp_path),), preload=("breaks_a_zygote",))
        slots.append(Slot(config, "test", Observer(recycled=reasons.append)))
        return slots[-1], reasons

    yield make
    for slot in slots:
        slot.close()


@pytest.fixture
def submission(make):
    request = make("print(input())", ("1", "1"), ("2", "2"))
    return Submission(request, tuple(request.tests))


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
def test_zygotes_that_are_all_broken_give_error(broken_slot, submission, breakage):
    slot, reasons = broken_slot(breakage)
    answer = slot.judge(submission, time.monotonic() + 60)
    assert answer.passed is None
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.ERROR] * 2
    assert len(reasons) == 2  # each was ended, and what it still may say with it


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
def test_one_broken_zygote_is_replaced_and_nobody_notices(broken_slot, submission, breakage):
    slot, reasons = broken_slot(breakage, once=True)
    assert slot.judge(submission, time.monotonic() + 60).passed is True
    assert len(reasons) == 1
    assert slot.judge(submission, time.monotonic() + 60).passed is True


@pytest.mark.parametrize("breakage", NOT_STARTED.values(), ids=NOT_STARTED)
def test_what_fails_in_a_runner_before_its_program_is_the_judges_failure(broken_slot, submission, breakage):
    slot, reasons = broken_slot(breakage)
    answer = slot.judge(submission, time.monotonic() + 60)
    assert answer.passed is None
    assert "before its program started" in answer.verdicts[0].detail
    assert reasons == [Recycled.ZYGOTE_FAILED] * 2


@pytest.mark.parametrize("breakage", NOT_STARTED.values(), ids=NOT_STARTED)
def test_what_fails_in_one_runner_before_its_program_is_tried_again(broken_slot, submission, breakage):
    slot, _ = broken_slot(breakage, once=True)
    assert slot.judge(submission, time.monotonic() + 60).passed is True


@pytest.mark.parametrize("call", ["pread", "read", "write"])
def test_what_fails_in_a_session_before_its_program_is_the_judges_failure(broken_slot, make, call):
    breakage = f"""
import errno, os
zygote = os.getpid()
def refuse(descriptor, *rest, call=os.{call}):
    if descriptor > 2 and os.getpid() != zygote:  # the control socket, the program, the zygote's socket
        raise OSError(errno.EIO, "Input/output error")
    return call(descriptor, *rest)
replace("{call}", refuse)
"""
    slot, reasons = broken_slot(breakage)
    comment = "#" * 9000 if call == "pread" else ""  # a long program is in a file
    request = make(f"print(input()){comment}", ("1", "1"), scoring="livecodebench")
    answer = slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60)
    assert answer.passed is None
    assert "before its program started" in answer.verdicts[0].detail
    assert reasons == [Recycled.ZYGOTE_FAILED] * 2


@pytest.mark.parametrize("scoring", ["livecodebench", "strict"])
def test_a_zygote_that_cannot_serve_its_samples_serves_nobody(broken_slot, make, scoring):
    slot, _ = broken_slot("import builtins\nbuiltins.print = lambda *_: None\n")
    request = make("import sys\nsys.stdout.write('1')", ("1", "1"), scoring=scoring)
    answer = slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60)
    assert answer.passed is None
    assert "a sample was answered by" in answer.verdicts[0].detail
    assert slot.failed_starts == 2


@pytest.mark.parametrize("word", ["statistics", "shutil"])
def test_a_module_that_cannot_be_loaded_for_a_program_is_the_judges_failure(broken_slot, make, word):
    breakage = f"""
import sys
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == {word!r}:
            raise OSError(5, "Input/output error")
sys.meta_path.insert(0, Refuses())
"""
    slot, reasons = broken_slot(breakage)
    request = make(f"print(input())  # {word}", ("1", "1"), scoring="livecodebench")
    answer = slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60)
    assert answer.passed is None
    assert "before its program started" in answer.verdicts[0].detail
    assert reasons == [Recycled.ZYGOTE_FAILED] * 2


def test_compile_error_that_cannot_be_told_is_the_judges_failure(broken_slot, make):
    slot, _ = broken_slot(NO_CLAIM)
    request = make("x = (", ("", ""))
    assert slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60).passed is None


def test_zygote_that_hangs_is_given_up_at_the_deadline_and_gone(broken_slot, make, monkeypatch):
    slot, reasons = broken_slot(HANGS)
    pid = slot.ensure_zygote().pid
    request = make("print(input())", ("1", "1"), ("2", "2"), time_limit_s=60)  # waited out, it would be this test's end
    started = time.monotonic()
    standing_still = SimpleNamespace(monotonic=lambda: started)  # it is asked, however long that takes to come
    monkeypatch.setattr("deepcoder_sandbox.process_per_test.time", standing_still)
    answer = slot.judge(Submission(request, tuple(request.tests)), started + 0.5)
    assert answer.passed is None
    assert "did not answer before the deadline" in answer.verdicts[0].detail
    assert reasons == [Recycled.ZYGOTE_FAILED]
    assert not Path(f"/proc/{pid}").exists()


UNCLEAN = """
import errno
from deepcoder_sandbox.worker import zygote
serve = zygote.Zygote.serve
def fail():
    raise OSError(errno.ENOSPC, "No space left on device")
zygote.Zygote.serve = lambda served, after_run: serve(served, fail)
"""


def test_zygote_that_cannot_clean_up_runs_no_other_test(broken_slot, submission):
    slot, reasons = broken_slot(UNCLEAN)
    first = slot.ensure_zygote().pid
    assert slot.judge(submission, time.monotonic() + 60).passed is True  # nobody is blamed
    assert slot.zygote_pid != first
    assert reasons == [Recycled.UNCLEAN]
    assert slot.judge(submission, time.monotonic() + 60).passed is True
    assert reasons == [Recycled.UNCLEAN] * 3


def test_zygote_that_cannot_clean_up_runs_no_other_session(broken_slot, make):
    slot, reasons = broken_slot(UNCLEAN)
    request = make("print(input())", ("1", "1"), scoring="livecodebench")
    for number in range(3):
        assert slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60).passed is True
        assert reasons == [Recycled.UNCLEAN] * number


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(12, "Cannot allocate memory")])
@pytest.mark.parametrize("call", ["memfd_create", "pwrite", "ftruncate"])
def test_no_memory_for_a_programs_files_is_error_and_passes(any_slot, submission, monkeypatch, call, error):
    def refuse(*_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(os, call, refuse)
        answer = any_slot.judge(submission, time.monotonic() + 60)
        assert answer.passed is None
        assert error.strerror in answer.verdicts[0].detail
    assert any_slot.judge(submission, time.monotonic() + 60).passed is True


@pytest.mark.parametrize(("number", "passed"), [(errno.ENOSPC, None), (errno.ENOMEM, None), (errno.EPERM, False)])
def test_input_that_cannot_be_written_is_the_programs_doing_only_if_that_can_be(
    any_slot, make, monkeypatch, number, passed
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    request = make("print(len(input()))", ("1", "1"), ("x" * 9000, "9000"), scoring="livecodebench")
    monkeypatch.setattr(MemoryFile, "overwrite", refuse)
    assert any_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60).passed is passed


def test_no_memory_in_the_middle_of_a_submission_is_tried_again(any_slot, submission, monkeypatch):
    create, calls = os.memfd_create, []

    def refuse_once(*arguments):
        calls.append(arguments)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        return create(*arguments)

    monkeypatch.setattr(os, "memfd_create", refuse_once)
    assert any_slot.judge(submission, time.monotonic() + 60).passed is True
    assert len(calls) > 7


def test_defect_in_comparing_is_error_and_the_zygote_is_ended(any_slot, submission, monkeypatch):
    def fail(*_):
        raise KeyError("a defect")

    pid = any_slot.ensure_zygote().pid
    with monkeypatch.context() as broken:
        broken.setattr("deepcoder_sandbox.process_per_test.strict.compare_text", fail)
        answer = any_slot.judge(submission, time.monotonic() + 60)
    assert answer.passed is None
    assert "KeyError" in answer.verdicts[0].detail
    assert any_slot.zygote_pid != pid


def test_zygote_is_replaced_after_so_many_runs(make):
    reasons = []
    slot = Slot(ZygoteConfig(), "test", Observer(recycled=reasons.append), recycle_after_runs=2)
    request = make("print(1)", ("", "1"))
    try:
        pids = []
        for _ in range(5):
            assert slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60).passed is True
            pids.append(slot.zygote_pid)
    finally:
        slot.close()
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 1]
    assert reasons == [Recycled.RUNS] * 2


def test_descriptors_that_run_out_as_a_zygote_starts_are_a_failed_start(make, monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    slot = Slot(ZygoteConfig(), "test")
    request = make("print(1)", ("", "1"))
    with monkeypatch.context() as broken:
        broken.setattr("socket.socketpair", refuse)
        assert slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60).passed is None
        assert slot.failed_starts == 2
    assert slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60).passed is True
    assert slot.failed_starts == 0
    slot.close()
