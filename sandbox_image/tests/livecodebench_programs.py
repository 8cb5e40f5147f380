"""Seeded programs for asking LiveCodeBench's harness and ours the same: ways of reading, writing, leaving and failing.

A program is drawn part by part; it need not make sense, it has to be graded alike. Nothing here runs anything.
"""

from __future__ import annotations

import ast
import json
import random

import livecodebench_function_parts as function
import livecodebench_stdin_parts as stdin

INPUTS = [
    "",
    "1",
    "1\n",
    "1 2\n3 4\n",
    "a\nb\nc",
    "\n\nx\n",
    "3\n1 2 3\n",
    "é ü\n",
    " 1 \r\n 2 ",
    "1\n" * 50,
    "[1, 2]\n",
]


def _indent(text: str) -> str:
    return "\n".join("    " + line if line else line for line in text.split("\n"))


def _in_main(body: str, call: str) -> str:
    return f"def main():\n{_indent(body)}\n{call}"


FORMS = [
    lambda body: body,
    lambda body: body,
    lambda body: body,
    lambda body: _in_main(body, "main()"),
    lambda body: _in_main(body, "if __name__ == '__main__':\n    main()"),
    lambda body: _in_main(body, 'if __name__ == "__main__":\n    main()\n'),
    lambda body: _in_main(body, 'if __name__ == "__main__": main()  # run'),
    lambda body: _in_main(body, "if (__name__) == ('__main__'):\n    main()\nelse:\n    print('else')"),
    lambda body: _in_main(body, "if '__main__' == __name__:\n    main()"),
    lambda body: _in_main(body, "if __name__ == '__main__':\n    import sys\n    main()\n    sys.exit()"),
    lambda body: _in_main(body, "if __name__ == '__main__':\n    main()\n\n# the end\n"),
    lambda body: _in_main(body, "if __name__ == '__main__':\n    main()\nprint('after')"),
    lambda body: _in_main(body, "if __name__ != '__main__': main()"),
    lambda body: _in_main(body, "t = threading.Thread(target=main)\nt.start()\nt.join()"),
    lambda body: _in_main(body, "sys.exit(main())"),
    lambda body: _in_main(body, "for _ in range(2): main()"),
    lambda body: f"if __name__ == '__main__':\n{_indent(body)}",
    lambda body: f"try:\n{_indent(body)}\nexcept Exception as error:\n    print(type(error).__name__)",
    lambda body: f"try:\n{_indent(body)}\nexcept:\n    print('any')",
    lambda body: f"try:\n{_indent(body)}\nfinally:\n    print('done')",
    lambda body: f"class Run:\n    def go(self):\n{_indent(_indent(body))}\nRun().go()",
    lambda body: f"if True:\n{_indent(body)}",
    lambda body: f"while True:\n{_indent(body)}\n    break",
    lambda body: f"exec({body!r}, globals())",
    lambda body: f"exec({body!r})",
]


def stdin_program(chance: random.Random) -> tuple[str, list[str]]:
    """Return a program and the inputs of its tests."""
    parts = [chance.choice(stdin.READ)]
    if chance.random() < 0.4:
        parts.append(chance.choice(stdin.SPOIL))
    parts.append(chance.choice(stdin.WRITE))
    if chance.random() < 0.15:
        parts.insert(chance.randrange(3), chance.choice(stdin.SPOIL))
    parts.append(chance.choice(stdin.LEAVE))
    if chance.random() < 0.2:
        parts[-2:] = reversed(parts[-2:])
    body = "\n".join(part for part in parts if part)
    imports = chance.choice(stdin.IMPORT)
    program = chance.choice(FORMS)(body)
    pieces = [imports, chance.choice(stdin.HEAD) + program]
    if chance.random() < 0.1:
        pieces.reverse()
    return "\n".join(piece for piece in pieces if piece), [chance.choice(INPUTS) for _ in range(2)]


def spoilt_output(chance: random.Random, output: str) -> str:
    """Return an expected output near to the one that was given."""
    changes = [
        lambda text: text,
        lambda text: text + "\n\n",
        lambda text: "  " + text + " ",
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace("\n", "\n\n", 1),
        lambda text: text.replace("\n", " ", 1),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("1", "1.0"),
        lambda text: text.replace("1", "01"),
        lambda text: text.replace("1", "１"),
        lambda text: text.replace("2", "2e0", 1),
        lambda text: text.replace("3", "+3", 1),
        lambda text: text.replace("1", "sNaN", 1),
        lambda text: text.upper(),
        lambda text: text[:-1],
        lambda text: text + "1",
        lambda text: "\x1c" + text + "\u2028",
    ]
    return chance.choice(changes)(output)


def value(chance: random.Random, depth: int = 0) -> str:
    """Return an expression."""
    if depth > 2 or chance.random() < 0.4:
        return chance.choice(function.SCALARS)
    return chance.choice(function.CONTAINERS).format(value(chance, depth + 1), value(chance, depth + 1))


def function_program(chance: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a program with a function f, and tests."""
    form = chance.choice(function.FUNCTION_FORMS)
    program = function.FUNCTION_HEAD + form.format(value(chance), chance.choice(function.EVENTS))
    arguments = ["1\n2" if chance.random() < 0.7 else chance.choice(function.ARGUMENTS) for _ in range(2)]
    return program, [(given, chance.choice(function.TWINS)) for given in arguments]


def twin(chance: random.Random, shown: str) -> str:
    """Return the JSON of a value that Python shows as `shown`, as far as it has one, or of one near to it."""
    try:
        text = json.dumps(ast.literal_eval(shown.replace("inf", "1e999")))
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return chance.choice(function.TWINS)
    return text if chance.random() < 0.8 else text.replace("1", "2", 1)
