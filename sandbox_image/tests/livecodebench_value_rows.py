"""What LiveCodeBench's harness answered to values that functions f return; a part of `livecodebench_function_rows`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from livecodebench_function_rows import Row

ROWS: dict[str, list[Row]] = {
    "a tuple at the top becomes a list, then plain == decides": [
        ("class Solution:\n    def f(self,a,b):\n        return (a,b)", [("1\n2", "[1,2]")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return [(a,b)]", [("1\n2", "[[1,2]]")], [False], -2),
        ("class Solution:\n    def f(self,a,b):\n        return True", [("1\n2", "1")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return 1.0", [("1\n2", "1")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return None", [("1\n2", "null")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return float('nan')", [("1\n2", "NaN")], [False], -2),
        ("class Solution:\n    def f(self,a,b):\n        return {1:2}", [("1\n2", '{"1":2}')], [False], -2),
        ("class Solution:\n    def f(self,a,b):\n        return {'1':2}", [("1\n2", '{"1":2}')], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return Fraction(6,2)", [("1\n2", "3")], [-4], -4),
        (
            ("from fractions import Fraction\nclass Solution:\n    def f(self,a,b):\n        return Fraction(6,2)"),
            [("1\n2", "3")],
            [True],
            None,
        ),
        (
            ("from decimal import Decimal\nclass Solution:\n    def f(self,a,b):\n        return Decimal(3)"),
            [("1\n2", "3")],
            [True],
            None,
        ),
        ("class Solution:\n    def f(self,a,b):\n        return 3+0j", [("1\n2", "3")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return {3}", [("1\n2", "[3]")], [False], -2),
        ("class Solution:\n    def f(self,a,b):\n        return Counter([3])", [("1\n2", '{"3":1}')], [False], -2),
        ("class Solution:\n    def f(self,a,b):\n        return Counter('3')", [("1\n2", '{"3":1}')], [True], None),
        (
            "class Solution:\n    def f(self,a,b):\n        return defaultdict(int,{'a':1})",
            [("1\n2", '{"a":1}')],
            [True],
            None,
        ),
        ("class Solution:\n    def f(self,a,b):\n        return deque([3])", [("1\n2", "[3]")], [False], -2),
        (
            "P=namedtuple('P','x y')\nclass Solution:\n    def f(self,a,b):\n        return P(1,2)",
            [("1\n2", "[1,2]")],
            [True],
            None,
        ),
        ("class Solution:\n    def f(self,a,b):\n        return range(3)", [("1\n2", "[0,1,2]")], [False], -2),
        ("class Solution:\n    def f(self,a,b):\n        return b'a'", [("1\n2", '"a"')], [False], -2),
        ("class Solution:\n    def f(self,a,b):\n        return sorted([a,b])", [("1\n2", "[1, 2]")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return 'x'*a", [("1\n2", '"x"')], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("[1,2]\n2", "[1,2]")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return f'{a}{b}'", [("1\n2", '"12"')], [True], None),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return [True, 0.0, 'a']",
            [("1\n2", '[1, -0.0, "a"]')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return ((1, 2), 3)",
            [("1\n2", "[[1, 2], 3]")],
            [False],
            -2,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return {'a': (1,)}",
            [("1\n2", '{"a": [1]}')],
            [False],
            -2,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return OrderedDict(b=1, a=2)",
            [("1\n2", '{"a": 2, "b": 1}')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return ChainMap({'a': 1})",
            [("1\n2", '{"a": 1}')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return UserDict(a=1)",
            [("1\n2", '{"a": 1}')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return UserList([1])",
            [("1\n2", "[1]")],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return [UserList([1])]",
            [("1\n2", "[[1]]")],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return UserString('a')",
            [("1\n2", '"a"')],
            [True],
            None,
        ),
        (
            ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return MappingProxyType({'a': 1})"),
            [("1\n2", '{"a": 1}')],
            [True],
            None,
        ),
        (
            ("<imports>\nclass MyDict(dict): pass\nclass Solution:\n    def f(self,a,b):\n        return MyDict(a=1)"),
            [("1\n2", '{"a": 1}')],
            [True],
            None,
        ),
        (
            ("<imports>\nclass MyList(list): pass\nclass Solution:\n    def f(self,a,b):\n        return MyList([1])"),
            [("1\n2", "[1]")],
            [True],
            None,
        ),
        (
            (
                "<imports>\nclass Color(IntEnum):\n    RED = 1\nclass Solution:\n    def f(self,a,b):\n"
                "        return Color.RED"
            ),
            [("1\n2", "1")],
            [True],
            None,
        ),
        (
            (
                "<imports>\nclass Word(str, Enum):\n    A = 'a'\nclass Solution:\n    def f(self,a,b):\n"
                "        return Word.A"
            ),
            [("1\n2", '"a"')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return {'a': 1}.items()",
            [("1\n2", '[["a", 1]]')],
            [False],
            -2,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return list({'a': 1}.keys())",
            [("1\n2", '["a"]')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return map(int, '1')",
            [("1\n2", "[1]")],
            [False],
            -2,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return (i for i in [1])",
            [("1\n2", "[1]")],
            [False],
            -2,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return [float('nan')]",
            [("1\n2", "[NaN]")],
            [False],
            -2,
        ),
        ("class Solution:\n    def f(self,a,b):\n        return [a]", [("NaN\n2", "[NaN]")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("NaN\n2", "NaN")], [False], -2),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return 10**400",
            [("1\n2", "1<400 zeros>")],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return 2**53 + 1",
            [("1\n2", "9007199254740993")],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return float(2**53)",
            [("1\n2", "9007199254740993")],
            [False],
            -2,
        ),
        ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return 0.1 + 0.2", [("1\n2", "0.3")], [False], -2),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return '\\ud800'",
            [("1\n2", '"\\ud800"')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return {None: 1}",
            [("1\n2", '{"null": 1}')],
            [False],
            -2,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return {'a': 1, 'b': 2}",
            [("1\n2", '{"b": 2, "a": 1, "b": 2}')],
            [True],
            None,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return NotImplemented",
            [("1\n2", "3")],
            [False],
            -2,
        ),
        ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return int", [("1\n2", "3")], [False], -2),
        ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return print", [("1\n2", "null")], [False], -2),
        ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return f'{a}'", [("1\n2", '"1"')], [True], None),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return bytearray(b'a')",
            [("1\n2", '"a"')],
            [False],
            -2,
        ),
        (
            ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return type('T', (tuple,), {})((1, 2))"),
            [("1\n2", "[1, 2]")],
            [True],
            None,
        ),
    ],
}
