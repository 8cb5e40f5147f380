"""Parts of programs with a function f, for `livecodebench_programs`: values, bodies, arguments, expected JSON."""

SCALARS = (
    *("0", "1", "-1", "True", "False", "None", "1.0", "0.1 + 0.2", "-0.0", "1e300 * 1e10", "float('nan')", "2 ** 70"),
    *(
        "10 ** 400",
        "10 ** 50001",
        "''",
        "'a'",
        "'é'",
        "'\\ud800'",
        "'1'",
        "b'a'",
        "3 + 0j",
        "Fraction(1, 2)",
        "Decimal('0.5')",
    ),
    *(
        "Decimal('NaN')",
        "Decimal('sNaN')",
        "Fraction(2)",
        "Color.RED",
        "Word.A",
        "MyInt(1)",
        "MyStr('a')",
        "MyFloat(1.0)",
        "int",
        "f",
    ),
    *(
        "range(2)",
        "object()",
        "...",
        "NotImplemented",
        "iter([1])",
        "(i for i in [1])",
        "{1}",
        "frozenset()",
        "array('i', [1])",
    ),
    *("deque([1])", "UserString('a')", "datetime.datetime(2020, 1, 1)", "re.compile('a')", "ord('a')", "sys.maxsize"),
)

CONTAINERS = [
    "[{0}]",
    "[{0}, {1}]",
    "({0}, {1})",
    "({0},)",
    "[({0}, {1})]",
    "(({0},), [{1}])",
    "{{'a': {0}}}",
    "{{'a': {0}, 'b': {1}}}",
    "{{1: {0}}}",
    "{{None: {0}, True: {1}}}",
    "{{(1,): {0}}}",
    "OrderedDict(a={0}, b={1})",
    "defaultdict(int, a={0})",
    "Counter('ab')",
    "Counter()",
    "ChainMap({{'a': {0}}}, {{'b': {1}}})",
    "UserDict(a={0})",
    "UserList([{0}])",
    "MappingProxyType({{'a': {0}}})",
    "MyList([{0}])",
    "MyTuple([{0}, {1}])",
    "MyDict(a={0})",
    "Point({0}, {1})",
    "[Point({0}, {1})]",
    "Data({0})",
    "Simple(a={0})",
    "{{'a': {0}}}.items()",
    "list({{'a': {0}}}.items())",
    "{{'a': {0}}}.values()",
    "list({{'a': {0}}}.values())",
    "map(lambda i: i, [{0}])",
    "sorted([1, 0])",
    "[{0}] * 3",
    "[[{0}] * 2] * 2",
    "deque([{0}])",
    "MyList([]) + [{0}]",
]

FUNCTION_HEAD = """\
import sys, re, datetime
from array import array
from collections import *
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from types import MappingProxyType, SimpleNamespace as Simple
class Color(IntEnum):
    RED = 1
class Word(str, Enum):
    A = 'a'
class MyInt(int): pass
class MyFloat(float): pass
class MyStr(str): pass
class MyList(list): pass
class MyTuple(tuple): pass
class MyDict(dict): pass
Point = namedtuple('Point', 'x y')
@dataclass
class Data:
    x: object
"""

TWINS = (
    *(
        "0",
        "1",
        "-1",
        "true",
        "false",
        "null",
        "1.0",
        "0.30000000000000004",
        "-0.0",
        "Infinity",
        "NaN",
        "1180591620717411303424",
    ),
    *(
        '""',
        '"a"',
        '"\\u00e9"',
        '"\\ud800"',
        '"1"',
        "0.5",
        "2",
        "[1]",
        "[]",
        "[0, 1]",
        '{"a": 1}',
        "{}",
        '"b"',
        "3",
        "97",
    ),
)

FUNCTION_FORMS = [
    "class Solution:\n    def f(self, a, b):\n        return {0}",
    "class Solution:\n    def f(self, a, b):\n        return {0}",
    "def f(a, b):\n    return {0}",
    "f = lambda a, b: {0}",
    "class Solution:\n    def f(self, *args):\n        return {0}",
    "class Solution:\n    @classmethod\n    def f(cls, a, b):\n        return {0}",
    "class Solution:\n    def __init__(self): self.a = {0}\n    def f(self, a, b): return self.a",
    "class Solution:\n    cache = []\n    def f(self, a, b):\n        self.cache.append({0}); return self.cache",
    "class Solution:\n    @property\n    def f(self): return lambda a, b: {0}",
    "class Solution:\n    def f(self, a, b):\n        print('noise')\n        if a == 1: {1}\n        return {0}",
    "class Solution:\n    def f(self, a, b):\n        {1}\n        return {0}",
    "class Solution:\n    def f(self, a, b):\n        try:\n            {1}\n        except Exception: pass\n"
    "        return {0}",
    "class Solution:\n    def f(self, a, b):\n        yield {0}",
    "class Solution:\n    async def f(self, a, b):\n        return {0}",
    "class Solution:\n    def f(self, a, b=2):\n        return a if a == b else {0}",
    "class Solution(object):\n    def f(self, a, b):\n        return [a, b]",
    "class Solution:\n    def f(self, a, b):\n        return a",
    "class Solution:\n    def f(self, a, b):\n        if isinstance(a, list): a.append({0})\n        return a",
    "{1}\nclass Solution:\n    def f(self, a, b):\n        return {0}",
    "class Solution:\n    def __init__(self, needed): pass\n    def f(self, a, b): return {0}",
    "class SolutionX:\n    def f(self, a, b): return {0}",
    "class Solution:\n    def g(self, a, b): return {0}",
    "'class Solution'\ndef f(a, b): return {0}",
    "if __name__ == '__main__':\n    1 / 0\ndef f(a, b): return {0}",
    "def f(a, b):\n    return {0}\nSolution = f",
]

EVENTS = (
    *(
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "1 / 0",
        "raise Exception('TimeoutException')",
        "os._exit(0)",
        "exit()",
    ),
    *("input()", "x = sys.stdin.read()", "sys.stderr = None", "sys.stdout = None", "sys.stdout.close()", "return None"),
    *(
        "raise StopIteration",
        "sys.setrecursionlimit(60)",
        "del a",
        "import resource",
        "quit()",
        "pass",
        "print(open(0).read())",
    ),
    *("class E(Exception): __repr__ = None", "raise type('E', (Exception,), {'__repr__': lambda s: 1 / 0})"),
    *("raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})", "raise RecursionError", "raise MemoryError"),
    *("raise type('E', (Exception,), {'__repr__': lambda s: 'TimeoutException'})", "raise StopAsyncIteration"),
)

ARGUMENTS = [
    "1\n2",
    "1\n1",
    "[1]\n2",
    '"a"\n{"b": 1}',
    "1",
    "1\n2\n3",
    "1\n2\n",
    "",
    "x",
    " 1 \n\t2",
    "NaN\n1e999",
    "[1, 2]\nnull",
    "1\r\n2",
]
