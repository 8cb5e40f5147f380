"""What follows from a request's limits: how long its tests may take together, and when judging is given up."""

import pytest

from deepcoder_sandbox import limits

SIZES = [(0.1, 1), (0.1, 100), (6.0, 1), (6.0, 20), (12.0, 15), (600.0, 1)]


@pytest.mark.parametrize(("time_limit_s", "tests"), SIZES)
def test_deadline_comes_after_every_limit_of_the_submission(time_limit_s, tests):
    deadline_s = limits.judging_deadline_s(time_limit_s, tests)
    assert deadline_s > limits.submission_limit_s(time_limit_s, tests)
    assert deadline_s > limits.of_all_tests(time_limit_s, tests, 64, 1).wall_limit_s
    assert deadline_s > limits.of_one_test(time_limit_s, 64, 1).wall_limit_s


@pytest.mark.parametrize(("time_limit_s", "tests"), SIZES)
def test_program_that_computes_within_its_limits_is_never_stopped_by_the_limit_on_all_tests(time_limit_s, tests):
    assert limits.submission_limit_s(time_limit_s, tests) > time_limit_s * tests


def test_deadline_is_bounded():
    assert limits.judging_deadline_s(600, 10_000) == 3600


@pytest.mark.parametrize("stop", [True, False])
def test_program_that_sleeps_through_its_tests_meets_a_limit_before_the_deadline(judge_once, monkeypatch, stop):
    monkeypatch.setattr(limits, "submission_limit_s", lambda time_limit_s, tests: 1.0)
    code = "import time\ntime.sleep(0.7)\nprint(1)"
    answer = judge_once(code, *[("", "1")] * 3, time_limit_s=0.4, stop_on_first_failure=stop)
    assert [verdict.verdict.value for verdict in answer.verdicts] == [
        "passed",
        "time_limit",
        "skipped" if stop else "time_limit",
    ]


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_only_output_files_can_grow(judge, scoring):
    outputs = "(1, 2)" if scoring == "strict" else "(6,)"
    code = f"""
import os
grown = []
for fd in range(8):
    if fd in {outputs}: continue
    try:
        if os.fstat(fd).st_mode & 0o170000 != 0o100000: continue
        size = os.fstat(fd).st_size
        for attempt in (lambda: os.pwrite(fd, b"x" * 8192, size), lambda: os.ftruncate(fd, size + 4096),
                        lambda: os.posix_fallocate(fd, size, 4096)):
            try: attempt(); grown.append(fd)
            except OSError: pass
    except OSError: pass
print(grown or "nothing")
"""
    assert judge(code, ("some input", "nothing"), scoring=scoring).passed is True


def test_input_of_every_length_reaches_a_session_whole(judge_once):
    inputs = ["", "x" * 70_000, "é", "y" * 5000, "\U0001f600" * 3]
    code = "import sys\nt = sys.stdin.read()\nprint(len(t), t[-3:])"
    tests = [(text, f"{len(text)} {text[-3:]}") for text in inputs]
    assert judge_once(code, *tests, scoring="livecodebench").passed is True


def test_code_too_large_to_be_kept_is_compiled_for_each_test(judge_once):
    code = "".join(f"x{n} = '{n}' * 4000\n" for n in range(3000)) + "print(input())"
    assert judge_once(code, ("1", "1"), ("2", "2"), ("3", "3")).passed is True


MANY_THREADS = """
import threading
from concurrent.futures import ThreadPoolExecutor
together = threading.Barrier(64)
def work(number):
    together.wait()
    return len(str(number) * 1000)
with ThreadPoolExecutor(64) as pool: print(len(list(pool.map(work, range(64)))))
"""


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_program_of_many_threads_has_room_for_them(judge, scoring):
    assert judge(MANY_THREADS, ("", "64"), scoring=scoring, time_limit_s=3).passed is True
