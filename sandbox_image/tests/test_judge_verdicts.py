"""Every verdict of the contract, for every kind of program, in strict scoring."""

import pytest

from deepcoder_contracts.judge import Scoring, Verdict
from deepcoder_sandbox import outcome
from deepcoder_sandbox.compare import values
from deepcoder_sandbox.outcome import Claim
from deepcoder_sandbox.worker.packets import RunEnded, RunLimits

SUM = "print(sum(map(int, input().split())))"


def verdicts(answer):
    return [verdict.verdict for verdict in answer.verdicts]


def test_right_program_passes_every_test(judge):
    answer = judge(SUM, ("1 2", "3"), ("4 5\n", "9\n"))
    assert answer.passed is True
    assert verdicts(answer) == [Verdict.PASSED, Verdict.PASSED]


def test_first_failure_skips_the_rest(judge):
    answer = judge(SUM, ("1 2", "3"), ("1 2", "4"), ("1 2", "3"))
    assert answer.passed is False
    assert verdicts(answer) == [Verdict.PASSED, Verdict.WRONG_ANSWER, Verdict.SKIPPED]


def test_every_test_runs_when_asked_to_go_on(judge_once):
    answer = judge_once(SUM, ("1 2", "4"), ("1 2", "3"), stop_on_first_failure=False)
    assert verdicts(answer) == [Verdict.WRONG_ANSWER, Verdict.PASSED]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(4)", Verdict.WRONG_ANSWER),
        ("1 / 0", Verdict.RUNTIME_ERROR),
        ("print(3); raise SystemExit(1)", Verdict.RUNTIME_ERROR),
        ("import os; os.write(1, b'3'); os._exit(2)", Verdict.RUNTIME_ERROR),
        ("import os; os.abort()", Verdict.RUNTIME_ERROR),
        ("x = (", Verdict.COMPILE_ERROR),
        ("x = " + "(" * 300 + ")" * 300, Verdict.COMPILE_ERROR),
        ("while True: pass", Verdict.TIME_LIMIT),
        ("import time; time.sleep(60)", Verdict.TIME_LIMIT),
        ("import threading, time\nt = threading.Thread(target=time.sleep, args=(60,)); t.start()", Verdict.TIME_LIMIT),
        ("x = bytearray(1 << 30)", Verdict.MEMORY_LIMIT),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", Verdict.MEMORY_LIMIT),
        ("while True: print('x' * 1000)", Verdict.OUTPUT_LIMIT),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", Verdict.OUTPUT_LIMIT),
        ("print(3)", Verdict.PASSED),
        ("print(3); exit()", Verdict.PASSED),
        ("print(3); raise SystemExit(0)", Verdict.PASSED),
        ("import atexit; atexit.register(print, 3)", Verdict.PASSED),
        ("import threading; threading.Thread(target=print, args=(3,)).start()", Verdict.PASSED),
        ("if __name__ == '__main__': print(3)", Verdict.PASSED),
        ("import sys; print(3); sys.stdout.close()", Verdict.PASSED),
        ("try: x = bytearray(1 << 30)\nexcept MemoryError: print(3)", Verdict.PASSED),
        ("import resource as r; r.setrlimit(r.RLIMIT_STACK, r.getrlimit(r.RLIMIT_STACK)); print(3)", Verdict.PASSED),
        (
            "import sys; sys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nf(50000); print(3)",
            Verdict.PASSED,
        ),
    ],
)
def test_stdin_program_gets_its_verdict(judge, code, expected):
    # What runs into another limit may take its time on the way: to fill memory takes longer where others do, too.
    time_limit_s = 0.4 if expected is Verdict.TIME_LIMIT else 10
    answer = judge(code, ("", "3"), time_limit_s=time_limit_s, memory_limit_mb=256)
    assert verdicts(answer) == [expected], answer
    assert answer.passed is (expected is Verdict.PASSED)


def test_stdin_can_be_read_in_every_usual_way(judge):
    readers = [
        "import sys; print(sys.stdin.read())",
        "print(open(0).read())",
        "print(open('/dev/stdin').read())",
        "import os; print(os.read(0, 100).decode())",
        "import sys; print(sys.stdin.buffer.read().decode())",
        "import sys\nfor line in sys.stdin: print(line, end='')",
        "import mmap; print(mmap.mmap(0, 0, prot=mmap.PROT_READ)[:].decode())",
        "print(input()); print(input())",
    ]
    for code in readers:
        assert judge(code, ("one é\ntwo\n", "one é\ntwo")).passed is True, code


def test_compile_error_names_the_line_and_is_the_same_for_every_test(judge_once):
    answer = judge_once("x = 1\ny = (", ("", ""), ("", ""), stop_on_first_failure=False)
    assert verdicts(answer) == [Verdict.COMPILE_ERROR, Verdict.COMPILE_ERROR]
    assert "line 2" in (answer.verdicts[0].detail or "")


def test_detail_is_escaped_bounded_and_holds_no_expected_output(judge_once):
    answer = judge_once("print('\\x1b[31m' + 'y' * 5000)", ("", "the secret answer"))
    detail = answer.verdicts[0].detail or ""
    assert len(detail) < 200
    assert detail.isprintable()
    assert "secret" not in detail


@pytest.mark.parametrize("written_before", ["", "import sys\nsys.stderr.write('a line\\n' * 10_000)\n"])
def test_runtime_error_shows_the_last_line_of_the_traceback(judge_once, written_before):
    assert "ZeroDivisionError" in (judge_once(f"{written_before}1 / 0", ("", "")).verdicts[0].detail or "")


LIMITS = RunLimits(cpu_limit_s=1.0, wall_limit_s=3.0, memory_limit_mb=100, file_bytes=1000)


@pytest.mark.parametrize(
    ("wait_status", "cpu_s", "rss_mb", "written_bytes", "claimed", "expected", "detail"),
    [
        (0, 1.0, 10, 999, None, None, None),
        (0, 1.01, 10, 0, None, Verdict.TIME_LIMIT, "1 s of CPU"),  # it ended before anybody looked
        (24, 0.99, 10, 0, None, Verdict.TIME_LIMIT, "1 s of CPU"),  # SIGXCPU
        (9, 1.01, 10, 0, None, Verdict.TIME_LIMIT, "1 s of CPU"),  # the kernel's SIGKILL some seconds later
        (25, 0.1, 10, 0, None, Verdict.OUTPUT_LIMIT, "1000 bytes"),  # SIGXFSZ, whatever was written where
        (0, 0.1, 10, 1000, None, Verdict.OUTPUT_LIMIT, "1000 bytes"),
        (11, 0.1, 91, 0, None, Verdict.MEMORY_LIMIT, "near 100 MiB"),
        (11, 0.1, 89, 0, None, Verdict.RUNTIME_ERROR, "SIGSEGV"),
        (40, 0.1, 10, 0, None, Verdict.RUNTIME_ERROR, "signal 40"),
        (3 << 8, 0.1, 95, 0, None, Verdict.RUNTIME_ERROR, "exit status 3"),
        (0, 0.1, 10, 0, "exit", Verdict.RUNTIME_ERROR, "it left"),
        (1 << 8, 0.1, 10, 0, "memory", Verdict.MEMORY_LIMIT, "100 MiB"),
        (11, 1.01, 95, 1000, "compile", Verdict.TIME_LIMIT, "1 s of CPU"),  # time comes before all else
        (11, 0.1, 95, 1000, "compile", Verdict.OUTPUT_LIMIT, "1000 bytes"),
        (11, 0.1, 95, 0, "compile", Verdict.COMPILE_ERROR, "it left"),
    ],
)
def test_run_that_ended_by_itself_gets_the_verdict_of_what_it_did(
    wait_status, cpu_s, rss_mb, written_bytes, claimed, expected, detail
):
    ended = RunEnded(wait_status, cpu_s, 0.1, 0.0, rss_mb << 10, killed_for=None, clean=True)
    verdict = outcome.failed_run(ended, LIMITS, Claim(claimed, "it left" if claimed else None), written_bytes, b"")
    assert (verdict and verdict.verdict) is expected
    assert verdict is None or detail in verdict.detail


def test_each_strict_test_has_a_process_of_its_own(judge):
    code = "import sys, math\nseen = getattr(math, 'seen', 0)\nmath.seen = seen + 1\nprint(seen)"
    assert judge(code, ("", "0"), ("", "0"), ("", "0")).passed is True


def test_cpu_seconds_are_reported(judge_once):
    answer = judge_once("import time\nwhile time.process_time() < 0.2: pass", ("", ""))
    assert 0.1 < answer.verdicts[0].seconds < 1.0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("class Solution:\n    def add(self, a, b): return a + b", Verdict.PASSED),
        ("def add(a, b): return a + b", Verdict.PASSED),
        ("def add(a, b): return a - b", Verdict.WRONG_ANSWER),
        ("def other(a, b): return a + b", Verdict.RUNTIME_ERROR),
        ("def add(a): return a", Verdict.RUNTIME_ERROR),
        ("def add(a, b): 1 / 0", Verdict.RUNTIME_ERROR),
        ("def add(a, b): raise SystemExit(0)", Verdict.RUNTIME_ERROR),
        ("import os\ndef add(a, b): os._exit(0)", Verdict.WRONG_ANSWER),
        ("def add(a, b:", Verdict.COMPILE_ERROR),
        ("def add(a, b):\n    while True: pass", Verdict.TIME_LIMIT),
        ("def add(a, b): return bytearray(1 << 30)", Verdict.MEMORY_LIMIT),
        ("def add(a, b): return 'x' * (1 << 24)", Verdict.OUTPUT_LIMIT),
        ("def add(a, b):\n    print('talk'); return a + b", Verdict.PASSED),
        ("def add(a, b): return True if a + b == 3 else 3", Verdict.WRONG_ANSWER),
        ("def add(a, b): return 3.0", Verdict.PASSED),
        ("def add(a, b): return '3'", Verdict.WRONG_ANSWER),
    ],
)
def test_function_gets_its_verdict(judge, code, expected):
    answer = judge(code, ("1\n2", "3"), kind="function", fn_name="add", time_limit_s=0.4, memory_limit_mb=256)
    assert verdicts(answer) == [expected], answer


def test_function_keeps_its_name_with_many_tests(judge_once):
    tests = [(f"{number}", f"{number + 1}") for number in range(40)]
    answer = judge_once("def inc(n): return n + 1", *tests, kind="function", fn_name="inc")
    assert answer.passed is True
    assert len(answer.verdicts) == 40


def test_function_of_a_named_class_and_integers_of_any_length(judge_once):
    code = "class A:\n    def f(self, n): return (n, {1: n})"
    number = "9" * 6000
    answer = judge_once(code, (number, f'[{number}, {{"1": {number}}}]'), kind="function", fn_name="A.f")
    assert answer.passed is True, answer


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("assert add(1, 2) == 3", Verdict.PASSED),
        ("assert add(1, 2) == 4", Verdict.RUNTIME_ERROR),
        ("raise SystemExit(0)", Verdict.RUNTIME_ERROR),
        ("while True: pass", Verdict.TIME_LIMIT),
    ],
)
def test_script_passes_when_its_appended_test_runs_to_the_end(judge, test, expected):
    code = "def add(a, b): return a + b"
    assert verdicts(judge(code, (test, ""), kind="script", time_limit_s=0.4)) == [expected]


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import os; os.write(3, b'{\"completed\": true}'); os._exit(0)",
        'import os; os.write(3, b\'{"completed": "0123456789abcdef"}\'); os._exit(0)',  # not the word that was given
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit",
    ],
)
def test_script_that_leaves_before_its_test_does_not_pass(judge, code):
    assert judge(code, ("assert False", ""), kind="script").passed is False


@pytest.mark.parametrize(
    ("code", "tolerance", "expected"),
    [
        ("print(0.3333334)", None, Verdict.WRONG_ANSWER),
        ("print(0.3333334)", 1e-6, Verdict.PASSED),
        ("print(0.34)", 1e-6, Verdict.WRONG_ANSWER),
        ("print('0.3333333')", None, Verdict.PASSED),
        ("print('3.333333e-1')", None, Verdict.WRONG_ANSWER),
    ],
)
def test_numbers_differ_unless_the_job_allows_a_tolerance(judge_once, code, tolerance, expected):
    assert verdicts(judge_once(code, ("", "0.3333333"), float_tolerance=tolerance)) == [expected]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('YES')", Verdict.PASSED),  # the released comparator lets it pass for NO
        ("print('NO'); 1 / 0", Verdict.PASSED),
        ("print('NO'); raise SystemExit(3)", Verdict.PASSED),
        ("print('NO'); import os, sys; sys.stdout.flush(); os.abort()", Verdict.PASSED),
        ("print(deque(['NO'])[0])", Verdict.PASSED),  # its imports stand before every program
        ("print('NO', 'NO')", Verdict.WRONG_ANSWER),
        ("1 / 0", Verdict.WRONG_ANSWER),
        ("import os; os.write(1, b'\\xff')", Verdict.WRONG_ANSWER),
        ("x = (", Verdict.COMPILE_ERROR),
        ("while True: pass", Verdict.TIME_LIMIT),
        ("x = bytearray(1 << 30)", Verdict.MEMORY_LIMIT),
        ("while True: print('NO' * 1000)", Verdict.OUTPUT_LIMIT),
    ],
)
def test_taco_compat_passes_what_the_released_reward_passed(judge_once, code, expected):
    answer = judge_once(code, ("", "NO"), scoring="taco-compat", time_limit_s=0.4, memory_limit_mb=256)
    assert verdicts(answer) == [expected], answer


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def inc(n): return n + 1", Verdict.PASSED),
        ("def inc(n): return [[n + 1]]", Verdict.WRONG_ANSWER),
        ("def inc(n): 1 / 0", Verdict.RUNTIME_ERROR),
        ("def inc(n): return Counter([n])[n] + n", Verdict.PASSED),
    ],
)
def test_taco_compat_keeps_the_function_with_more_tests_than_the_released_reward_could(judge_once, code, expected):
    tests = [(f"{number}", f"[{number + 1}]") for number in range(40)]
    answer = judge_once(code, *tests, scoring="taco-compat", kind="function", fn_name="inc")
    assert verdicts(answer)[0] is expected
    assert answer.passed is (expected is Verdict.PASSED)
    assert len(answer.verdicts) == 40


@pytest.mark.parametrize("scoring", Scoring)
def test_function_finds_the_usual_names_in_every_scoring(judge_once, scoring):
    code = "class Solution:\n def f(self, s: List[str]) -> int: return max(collections.Counter(s).values()) + gcd(2, 4)"
    assert judge_once(code, ('["a", "a"]', "4"), scoring=scoring, kind="function", fn_name="f").passed is True


def test_program_that_reads_standard_input_finds_no_name_that_it_has_not_imported(judge_once):
    assert verdicts(judge_once("print(gcd(2, 4))", ("", "2"))) == [Verdict.RUNTIME_ERROR]


@pytest.mark.parametrize("scoring", Scoring)
def test_function_keeps_its_name_with_many_tests_in_every_scoring(judge_once, scoring):
    tests = [(f"{number}", f"{number + 1}") for number in range(40)]
    code = "def inc(n): return n + 1"
    assert judge_once(code, *tests, scoring=scoring, kind="function", fn_name="inc").passed is True


def test_the_harness_result_stands_beside_in_livecodebench_scoring_alone(judge_once):
    for scoring in set(Scoring) - {Scoring.LIVECODEBENCH}:
        assert judge_once(SUM, ("1 2", "3"), scoring=scoring).lcb is None
    lcb = judge_once(SUM, ("1 2", "3"), ("1 2", "4"), ("1 2", "3"), scoring="livecodebench").lcb
    assert lcb is not None
    assert (lcb.results, lcb.error_code) == ([True, -2], -2)


@pytest.mark.parametrize("tag", ["", "FD", "Dc", "FDc", "x"])
def test_tag_that_is_none_is_a_value_that_equals_nothing(tag):
    assert isinstance(values.decode(f'{{"{tag}": [3, 0]}}'.encode(), "3"), values.Opaque)


@pytest.mark.parametrize(("scoring", "passed"), [("strict", False), ("livecodebench", True), ("taco-compat", True)])
@pytest.mark.parametrize("returned", ["fractions.Fraction(n)", "collections.UserList([n])[:]"])
def test_value_that_json_does_not_have_is_what_it_equals_in_the_published_scorings_alone(
    judge_once, scoring, passed, returned
):
    code = f"import collections, fractions\ndef f(n): return {returned}"
    expected = "4" if "Fraction" in returned else "[4]"
    assert judge_once(code, ("4", expected), kind="function", fn_name="f", scoring=scoring).passed is passed
