"""LiveCodeBench's verdicts, quirk by quirk: each row is what its own harness answered (commit 28fef95, timeout 1 s).

`DEEPCODER_LIVECODEBENCH` may name a checkout: then the harness is asked again and has to agree with every row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepcoder_contracts.judge import Verdict

T, F = True, False

STDIN = [
    ("print(sum(map(int,input().split())))", [("1 2\n", "3\n")], [T], None),
    ("print(sum(map(int,input().split())))", [("1 2", "3"), ("1 2", "3"), ("1 2", "3")], [T, T, T], None),
    ("print(sum(map(int,input().split())))", [("1 2", "3"), ("1 2", "4"), ("1 2", "3")], [T, -2], -2),
    ("print(4)", [("1 2\n", "3\n")], [-2], -2),
    ("1/0", [("1 2\n", "3\n")], [-4], -4),
    ("x=(", [("1 2\n", "3\n")], [-4], -4),
    ("", [("1 2\n", "3\n")], [-4], -4),
    ("import sys", [("1 2\n", "3\n")], [-4], -4),
    ("# hi", [("1 2\n", "3\n")], [-4], -4),
    ("import os; os._exit(0)", [("1 2\n", "3\n")], [-2], -5),
    ("import sys; print(3); sys.exit(3)", [("1 2\n", "3\n")], [T], None),
    ("print(3); exit()", [("1 2\n", "3\n")], [T], None),
    ("print(3); quit()", [("1 2\n", "3\n")], [-4], -4),
    ("print(3); raise SystemExit", [("1 2\n", "3\n")], [T], None),
    ("raise KeyboardInterrupt", [("1 2\n", "3\n")], [-2], -5),
    ("while 1: pass", [("1 2\n", "3\n")], [-3], -3),
    ("try:\n  while 1: pass\nexcept: print(3)", [("1 2\n", "3\n")], [-2], -2),
    (
        "try:\n  while 1: pass\nexcept Exception as e: print(repr(e))",
        [("", "timeout occured: alarm went off\nTimeoutException()")],
        [T],
        None,
    ),
    ("raise Exception('TimeoutException x')", [("1 2\n", "3\n")], [-3], -3),
    ("import time; time.sleep(3)", [("1 2\n", "3\n")], [-3], -3),
    ("class E(Exception):\n  def __repr__(self): return 1/0\nraise E", [("1 2\n", "3\n")], [-4], -4),
    ("from sys import stdin\nprint(sum(map(int,stdin.readline().split())))", [("1 2\n", "3\n")], [T], None),
    ("from sys import stdin\nprint(repr(stdin.readline()),repr(stdin.readline()))", [("a\n", "'a' ''")], [T], None),
    ("from sys import stdin\nfor _ in range(4): stdin.readline()", [("1 2\n", "3\n")], [-4], -4),
    ("print(repr(stdin.readline()))", [("a\nb\n", "'a'")], [T], None),
    ("print(repr(stdin.read()))", [("a\nb\n", "'a\\nb\\n'")], [T], None),
    (
        "import sys\ni = sys.stdin\nprint(repr(i.readline()),repr(i.readline()), repr(i.readlines()), repr(i.read(1)))",
        [("a\nb\n", "'a\\n' 'b\\n' ['a', 'b', ''] 'a\\nb\\n'")],
        [T],
        None,
    ),
    (
        "import sys\nb = sys.stdin.buffer\nprint(repr(b.readline()),repr(b.readline()),repr(b.read()))",
        [("a\nb\n", "b'a\\n' b'a\\n' b'a\\nb\\n'")],
        [T],
        None,
    ),
    ("import sys\nsys.stdin.buffer.readlines()", [("1 2\n", "3\n")], [-4], -4),
    ("import sys\nfor l in sys.stdin: print(3)", [("1 2\n", "3\n")], [-4], -4),
    ("print(open(0).read()=='')", [("1", "True")], [T], None),
    ("import os\nprint(os.read(0,10))", [("1", "b''")], [T], None),
    ("import builtins\nprint(builtins.open(0).read())", [("abc", "abc")], [T], None),
    (
        "import builtins\nfor l in builtins.open('x'): print(l,end='')\nprint(builtins.open('y').read())",
        [("abc\nd", "abc\ndabc\nd")],
        [T],
        None,
    ),
    ("import io\nprint(io.open(0).read()=='')", [("1", "True")], [T], None),
    ("import sys\nsys.stdout.buffer.write(b'3')", [("1 2\n", "3\n")], [-4], -4),
    ("from sys import stdout\nstdout.write('3')", [("1 2\n", "3\n")], [-2], -2),
    ("import os\nos.write(1,b'3')", [("1 2\n", "3\n")], [-2], -2),
    ("import sys\nsys.stdout.write('3')", [("1 2\n", "3\n")], [T], None),
    ("stdout.write('3')", [("1 2\n", "3\n")], [-2], -2),
    ("class Solution: pass\nprint(3)", [("1 2\n", "3\n")], [-4], -4),
    ("# class Solution\nprint(3)", [("1 2\n", "3\n")], [T], None),
    ("print('class Solution'[:0]+'3')", [("1 2\n", "3\n")], [-4], -4),
    ("x=1\ndef f():\n  global x\n  x+=1\nf()\nprint(3)", [("1 2\n", "3\n")], [-4], -4),
    ("from __future__ import annotations\nprint(3)", [("1 2\n", "3\n")], [-4], -4),
    ("'''doc'''\nfrom __future__ import annotations\nprint(3)", [("1 2\n", "3\n")], [-4], -4),
    ("print(3)\nreturn\nprint(4)", [("1 2\n", "3\n")], [T], None),
    ("def main():\n  print(3)\nif __name__ == '__main__':\n  main()", [("1 2\n", "3\n")], [T], None),
    ('def main():\n  print(3)\nif __name__ == "__main__":\n  main()\nelse:\n  print(4)', [("1 2\n", "3\n")], [T], None),
    ("def main():\n  print(3)\nif '__main__' == __name__:\n  main()", [("1 2\n", "3\n")], [-2], -2),
    ("if __name__ == '__main__':\n  print(3)\nprint(3)", [("1 2\n", "3\n")], [T], None),
    ("print(__name__)", [("", "tmp_sol")], [T], None),
    ("print(getrecursionlimit())", [("", "50000")], [T], None),
    ("import sys\nprint(sys.getrecursionlimit())", [("", "50000")], [T], None),
    ("def f(n): return 0 if n==0 else 1+f(n-1)\nprint(f(30000))", [("", "30000")], [T], None),
    ("print('1e3')", [("", "1000")], [T], None),
    ("print('1_000')", [("", "1000")], [T], None),
    ("print('１２')", [("", "12")], [T], None),
    ("print('-0')", [("", "0")], [T], None),
    ("print('nan')", [("", "NaN")], [-2], -2),
    ("print('NaN')", [("", "NaN")], [T], None),
    ("print('sNaN')", [("", "1")], [-4], -4),
    ("print('1 sNaN')", [("", "1 2")], [-4], -4),
    ("print('1 sNaN')", [("", "2 sNaN")], [-2], -2),
    ("print('1.0')", [("", "1")], [T], None),
    ("print('1.0000001')", [("", "1")], [-2], -2),
    ("print('a  b')", [("", "a b")], [-2], -2),
    ("print('1  2')", [("", "1 2")], [T], None),
    ("print('a\\n\\nb')", [("", "a\nb")], [-2], -2),
    ("print('1\\n2')", [("", "1 2")], [-2], -2),
    ("print(' 1 \\n 2 ')", [("", "1\n2")], [T], None),
    ("print('1\\r\\n2')", [("", "1\n2")], [T], None),
    ("print('1\\x0c2')", [("", "1 2")], [T], None),
    ("print('inf')", [("", "Infinity")], [T], None),
    ("print('0x10')", [("", "16")], [-2], -2),
    ("print('1e9999999999999999999')", [("", "1")], [-2], -2),
    ("print('')", [("", "\n")], [T], None),
    ("print('1')", [("", "1\n\n")], [T], None),
    ("print('½')", [("", "½")], [T], None),
    ("x=10**60000\nprint(x)", [("1 2\n", "3\n")], [-4], -4),
    ("x=int('1'*50001)", [("1 2\n", "3\n")], [-4], -4),
    ("import resource", [("1 2\n", "3\n")], [-4], -4),
    ("import subprocess\nsubprocess.Popen(['ls'])", [("1 2\n", "3\n")], [-4], -4),
    ("import os\nos.getcwd()", [("1 2\n", "3\n")], [-4], -4),
    ("import os\nos.kill(os.getpid(),9)", [("1 2\n", "3\n")], [-4], -4),
    ("import shutil; shutil.rmtree('x')", [("1 2\n", "3\n")], [-4], -4),
    ("help()", [("1 2\n", "3\n")], [-4], -4),
    ("import psutil", [("1 2\n", "3\n")], [-4], -4),
    (
        "import threading\nt=threading.Thread(target=lambda: print(3)); t.start(); t.join()",
        [("1 2\n", "3\n")],
        [T],
        None,
    ),
    ("import sys\nsys.stdin=open(0)\nprint(repr(sys.stdin.read()))", [("1", "''")], [T], None),
    ("import sys\nsys.stdout=sys.stderr\nprint(3)", [("1 2\n", "3\n")], [-2], -2),
    ("input=__import__('sys').stdin.readline\nprint(sum(map(int,input().split())))", [("1 2\n", "3\n")], [T], None),
    ("print(input())\nprint(input())", [("a", "a")], [-4], -4),
    ("print(input('p'))", [("a", "pa")], [T], None),
    ("import sys\nsys.stdin.close()\ninput()", [("1 2\n", "3\n")], [-4], -4),
    ("@cache\ndef f(n): return n if n<2 else f(n-1)+f(n-2)\nprint(f(4))", [("1 2\n", "3\n")], [T], None),
    ("print(Counter('aab').most_common(1)[0][1]+gcd(1,1))", [("1 2\n", "3\n")], [T], None),
    ("n=int(input())\ndata=[]\ndef g(): data.append(n)\ng();print(len(data))", [("1", "1"), ("2", "1")], [T, T], None),
    ("def f(a=[]):\n  a.append(1); return len(a)\nprint(f())", [("", "1"), ("", "1")], [T, T], None),
    ("import sys\nsys.x=getattr(sys,'x',0)+1\nprint(sys.x)", [("", "1"), ("", "2")], [T, T], None),
    ("import math as m, os.path\nprint(m.gcd(3,6))", [("1 2\n", "3\n")], [T], None),
    ("a=[int(x) for x in input().split()]\nprint(sum(a))", [("1 2\n", "3\n")], [T], None),
    ("try:\n  import nothere\nexcept ImportError:\n  pass\nprint(3)", [("1 2\n", "3\n")], [T], None),
    ("import nothere\nprint(3)", [("1 2\n", "3\n")], [-4], -4),
    (
        "if True:\n  from sys import stdin as q\n  print(sum(map(int,q.readline().split())))",
        [("1 2\n", "3\n")],
        [T],
        None,
    ),
    ("async def f(): pass\nprint(3)", [("1 2\n", "3\n")], [T], None),
    ("yield 3", [("1 2\n", "3\n")], [-2], -2),
    ("await x", [("1 2\n", "3\n")], [-4], -4),
    ("x: int = 3\nprint(x)", [("1 2\n", "3\n")], [T], None),
    ("nonlocal x", [("1 2\n", "3\n")], [-4], -4),
    ("print(f'{1+2}')", [("1 2\n", "3\n")], [T], None),
    ("print('\\n'.join(['3']))", [("1 2\n", "3\n")], [T], None),
    ("del print\nprint(3)", [("1 2\n", "3\n")], [-4], -4),
    ("print=lambda *a: 0\nprint(3)", [("1 2\n", "3\n")], [-2], -2),
    ("exec('y=3')\nprint(y)", [("1 2\n", "3\n")], [-4], -4),
    ("exec('y=3',globals())\nprint(y)", [("1 2\n", "3\n")], [T], None),
    ("print(3, file=sys.stderr)", [("1 2\n", "3\n")], [-2], -2),
    ("print(3, file=sys.stdout)", [("1 2\n", "3\n")], [T], None),
    (
        "import sys\ninput = lambda: sys.stdin.readline().rstrip()\nprint(sum(map(int,input().split())))",
        [("1 2\n", "3\n")],
        [T],
        None,
    ),
    ("lines=sys.stdin.read().split('\\n')\nprint(len(lines))", [("a\nb\n", "3")], [T], None),
]

FUNCTION = [
    ("class Solution:\n    def f(self,a,b):\n        return a+b", [("1\n2", "3")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return a-b", [("1\n2", "3")], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        return (a,b)", [("1\n2", "[1,2]")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return [(a,b)]", [("1\n2", "[[1,2]]")], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        return True", [("1\n2", "1")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return 1.0", [("1\n2", "1")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return a+b", [("1\n2\n", "3")], [-4], -4),
    ("def f(a,b): return a+b", [("1\n2", "3")], [T], None),
    ("# class Solution\ndef f(a,b): return a+b", [("1\n2", "3")], [-4], -4),
    ("class Solution:\n    def f(self,a,b):\n        1/0", [("1\n2", "3")], [-4], -4),
    ("class Solution:\n    def f(self,a,b):\n        while 1: pass", [("1\n2", "3")], [-3], -3),
    ("while 1: pass\nclass Solution:\n    def f(self,a,b):\n        return 1", [("1\n2", "3")], [-4], -4),
    ("class Solution:\n    def f(self,a,b):\n        raise SystemExit", [("1\n2", "3")], [-2], -5),
    ("class Solution:\n    def f(self,a,b):\n        exit()", [("1\n2", "3")], [-2], -5),
    ("class Solution:\n    def f(self,a,b):\n        return None", [("1\n2", "null")], [T], None),
    ("def g(a,b): return a+b", [("1\n2", "3")], [-4], -4),
    ("1/0", [("1\n2", "3")], [-4], -4),
    ("x=(", [("1\n2", "3")], [-4], -4),
    ("class Solution:\n    def f(self,a,b):\n        return 10**50001", [("1\n2", "3")], [F, -4], -4),
    ("class Solution:\n    def f(self,a,b):\n        return [10**50001]", [("1\n2", "3")], [F, -4], -4),
    ("class Solution:\n    def f(self,a,b):\n        return float('nan')", [("1\n2", "NaN")], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        return {1:2}", [("1\n2", '{"1":2}')], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        return {'1':2}", [("1\n2", '{"1":2}')], [T], None),
    (
        "class Solution:\n    n=0\n    def f(self,a,b):\n        self.n+=1\n        return self.n",
        [("1\n2", "1"), ("1\n2", "2"), ("1\n2", "4")],
        [T, T, F],
        -2,
    ),
    (
        "from __future__ import annotations\nclass Solution:\n    def f(self,a,b):\n        return a+b",
        [("1\n2", "3")],
        [-4],
        -4,
    ),
    ("class Solution:\n    def f(self,a:List[int],b:Optional[int]): return a+b", [("1\n2", "3")], [T], None),
    ("class Solution:\n    def __init__(self): 1/0\n    def f(self,a,b): return 3", [("1\n2", "3")], [-4], -4),
    ("class Solution:\n    f=None", [("1\n2", "3")], [-4], -4),
    ("class Solution:\n    def f(self,a): return 3", [("1\n2", "3")], [-4], -4),
    ("class Solution:\n    def f(self,a,b):\n        return Fraction(6,2)", [("1\n2", "3")], [-4], -4),
    (
        "from fractions import Fraction\nclass Solution:\n    def f(self,a,b):\n        return Fraction(6,2)",
        [("1\n2", "3")],
        [T],
        None,
    ),
    (
        "from decimal import Decimal\nclass Solution:\n    def f(self,a,b):\n        return Decimal(3)",
        [("1\n2", "3")],
        [T],
        None,
    ),
    ("class Solution:\n    def f(self,a,b):\n        return 3+0j", [("1\n2", "3")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return {3}", [("1\n2", "[3]")], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        return Counter([3])", [("1\n2", '{"3":1}')], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        return Counter('3')", [("1\n2", '{"3":1}')], [T], None),
    (
        "class Solution:\n    def f(self,a,b):\n        return defaultdict(int,{'a':1})",
        [("1\n2", '{"a":1}')],
        [T],
        None,
    ),
    ("class Solution:\n    def f(self,a,b):\n        return deque([3])", [("1\n2", "[3]")], [F], -2),
    (
        "P=namedtuple('P','x y')\nclass Solution:\n    def f(self,a,b):\n        return P(1,2)",
        [("1\n2", "[1,2]")],
        [T],
        None,
    ),
    ("class Solution:\n    def f(self,a,b):\n        return a+b", [("1\n2", "3"), ("1\n2", "x")], [-4], -4),
    ("class Solution:\n    def f(self,a,b):\n        print(3)\n        return a+b", [("1\n2", "3")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return stdin.read()", [("1\n2", '""')], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return sys.stdin.read()", [("1\n2", '""')], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        import os; os._exit(0)", [("1\n2", "3")], [-2], -5),
    ("class Solution:\n    def f(self,a,b):\n        return range(3)", [("1\n2", "[0,1,2]")], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        raise Exception('timeoutexception')", [("1\n2", "3")], [-3], -3),
    ("class Solution:\n    def f(self,a,b):\n        return b'a'", [("1\n2", '"a"')], [F], -2),
    ("class Solution:\n    def f(self,a,b):\n        return sorted([a,b])", [("1\n2", "[1, 2]")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return 'x'*a", [("1\n2", '"x"')], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return a", [("[1,2]\n2", "[1,2]")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return a", [("1e400\n2", "Infinity")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return a", [(" 1\n2 ", "1")], [T], None),
    ("def f(self): return 1", [("1\n2", "3")], [-4], -4),
    ("f=3", [("1\n2", "3")], [-4], -4),
    (
        "import time\ntime.sleep(3)\nclass Solution:\n    def f(self,a,b):\n        return a+b",
        [("1\n2", "3")],
        [-4],
        -4,
    ),
    ("class Solution:\n    @staticmethod\n    def f(a,b): return a+b", [("1\n2", "3")], [T], None),
    ("class Solution:\n    def f(self,a,b):\n        return f'{a}{b}'", [("1\n2", '"12"')], [T], None),
]


def verdicts(answer):
    return [verdict.verdict for verdict in answer.verdicts]


def rows(table):
    return [pytest.param(*row, id=f"{index}-{row[0][:30]!r}") for index, row in enumerate(table)]


def check(answer, tests, results, error_code):
    assert answer.lcb is not None, answer
    assert answer.lcb.results == results, answer
    assert [type(result) for result in answer.lcb.results] == [type(result) for result in results]
    assert answer.lcb.error_code == error_code
    assert answer.passed is (results == [True] * len(tests))
    assert len(answer.verdicts) == len(tests)
    assert Verdict.ERROR not in verdicts(answer)


@pytest.mark.parametrize(("code", "tests", "results", "error_code"), rows(STDIN))
def test_stdin_program_is_graded_as_by_the_harness(judge_once, code, tests, results, error_code):
    answer = judge_once(code, *tests, scoring="livecodebench", time_limit_s=0.5)
    check(answer, tests, results, error_code)


@pytest.mark.parametrize(("code", "tests", "results", "error_code"), rows(FUNCTION))
def test_function_is_graded_as_by_the_harness(judge_once, code, tests, results, error_code):
    answer = judge_once(code, *tests, scoring="livecodebench", time_limit_s=0.5, kind="function", fn_name="f")
    check(answer, tests, results, error_code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(4)", Verdict.WRONG_ANSWER),
        ("1 / 0", Verdict.RUNTIME_ERROR),
        ("x = (", Verdict.COMPILE_ERROR),
        ("while True: pass", Verdict.TIME_LIMIT),
        ("x = bytearray(1 << 30)", Verdict.MEMORY_LIMIT),
        ("print('x' * (2 << 20))", Verdict.OUTPUT_LIMIT),
        ("import os; os._exit(0)", Verdict.RUNTIME_ERROR),
        ("print(3)", Verdict.PASSED),
    ],
)
def test_failures_are_told_apart_beside_the_harness_result(judge, code, expected):
    answer = judge(code, ("", "3"), ("", "3"), scoring="livecodebench", time_limit_s=0.3, memory_limit_mb=256)
    rest = Verdict.PASSED if expected is Verdict.PASSED else Verdict.SKIPPED
    assert verdicts(answer) == [expected, rest]


DEAF = {
    "swallows it": "try:\n    while True: pass\nexcept Exception: pass\nwhile True: pass",
    "ignores it": "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
    "computes too long": (
        "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nbusy = time.process_time\n"
        "time.process_time = lambda: 0.0\nuntil = busy() + 2\nwhile busy() < until: pass\nprint(3)"
    ),
    "sleeps": "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(4)\nprint(3)",
    "puts the alarm off": "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0)\ntime.sleep(4)\nprint(3)",
}


@pytest.mark.parametrize("how", DEAF)
def test_program_that_does_not_hear_its_alarm_is_ended_soon_after_the_limit_of_that_test(judge, how):
    started = time.monotonic()
    answer = judge(DEAF[how], *[("", "3")] * 20, scoring="livecodebench", time_limit_s=0.3)
    assert verdicts(answer)[0] is Verdict.TIME_LIMIT, answer
    assert answer.lcb.error_code == (-3 if how == "puts the alarm off" else -5)
    assert time.monotonic() - started < 20  # the limit on all tests is 31 s


def test_seconds_of_a_test_are_not_the_programs_to_tell(judge):
    code = (
        "import time\ntime.process_time = lambda: 0.0\n"
        "until = time.thread_time() + 0.3\nwhile time.thread_time() < until: pass\nprint(3)"
    )
    answer = judge(code, ("", "3"), ("", "3"), scoring="livecodebench")
    assert answer.passed is True
    assert all(0.29 < verdict.seconds < 0.6 for verdict in answer.verdicts)


def test_value_with_its_own_equality_is_wrong_unlike_in_the_harness(judge_once):
    code = "class Yes:\n    def __eq__(self, other): return True\ndef f(): return Yes()"
    answer = judge_once(code, ("0", "3"), scoring="livecodebench", kind="function", fn_name="f")
    assert answer.passed is False


HARNESS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations_by_problem
out = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for code, tests, fn_name in json.load(sys.stdin):
    inputs, outputs = [given for given, _ in tests], [expected for _, expected in tests]
    sample = {"input_output": json.dumps({"inputs": inputs, "outputs": outputs, "fn_name": fn_name})}
    (results,), (metadata,) = evaluate_generations_by_problem(([code], sample, False, 1))
    print(json.dumps([results, metadata.get("error_code")]), file=out, flush=True)
"""


@pytest.mark.long
def test_harness_itself_still_answers_every_row():
    checkout = os.environ.get("DEEPCODER_LIVECODEBENCH")
    if not checkout or not Path(checkout, "lcb_runner").is_dir():
        pytest.skip("DEEPCODER_LIVECODEBENCH names no checkout of LiveCodeBench")
    table = [(*row, None) for row in STDIN] + [(*row, "f") for row in FUNCTION]
    asked = json.dumps([(code, tests, fn_name) for code, tests, _, _, fn_name in table])
    command = [sys.executable, "-c", HARNESS, checkout]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=1200, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [[results, error_code] for _, _, results, error_code, _ in table]
