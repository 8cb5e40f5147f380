"""Rewrites a program's text as LiveCodeBench's harness does: imports first, everything else in one function.

The harness parses and unparses a program up to twice (`_wrap_tree`, exactly), which is most of the cost of preparing a
short program. A plain program is therefore rewritten as text (`_wrap_text`) if that is known to give text that parses
to the same tree. Everything that could make a difference takes the long way. Brackets over several lines are first
joined into one line, as unparsing does, because the line breaks of a statement can show in its code. Neither way fails:
a program that the harness cannot rewrite is executed as it is, and `wrap` returns None for it.
"""

from __future__ import annotations

import ast
import re
from typing import Final

FUNCTION: Final = "wrapped_function"

_PLAIN_CHARS = 16 << 10  # shorter than any literal or chain of elif that the long way could fail on
_PLAIN_LINE = 150  # the unparser's recursion has room for what nests in one line

_TOKEN = re.compile(
    r"#[^\n]*"
    r"|\b[fF](?:'(?:[^'\"\\\n{}#]|\{[^'\"\\\n{}#]{1,40}\})*'|\"(?:[^'\"\\\n{}#]|\{[^'\"\\\n{}#]{1,40}\})*\")"
    r"|'''[^'\\\n]+'''|\"\"\"[^\"\\\n]+\"\"\""
    r"|'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
)
"""A comment, an f-string without quotes inside, a triple-quoted literal on one line, any other string literal."""

_ODD_ESCAPE = re.compile(r"\\[^nt\\'\"]")
_ODD_TEXTS = "\r|\0|class Solution|trace|inspect|frame|lineno|profile|warn|exc_info|__code__|co_|tb_"
"""What needs the long way; from the fourth on, it could show line numbers. One string, for a copy to touch."""

_ODD_QUOTE = re.compile(r"['\"](?:[ #\n]*['\"]|(?<=\w['\"]))")
"""The quote of a literal that follows another, or has a prefix."""

_ODD_CLASS = re.compile(r"\bclass +Solution")
_ODD_STATEMENT = re.compile(
    r"^ *(?:while|for|try|else|finally|except|with|async|class|def)\b(?!.*: *#?$)"  # a body on the line of its head:
    r"|^ *(?:el)?if\b.*: *(?:pass|continue|break)\b"  # whether an alarm is caught there can depend on line numbers
    r"|^ *match\b"
    rf"|^.{{{_PLAIN_LINE}}}",
    re.MULTILINE,
)
_BRACKETS = re.compile(r"[(\[{][^()\[\]{}\n]*[)\]}]")
_BRACKET = re.compile(r"[()\[\]{}]")
_JOINT = re.compile(r"[()\[\]{}'\"#]|\n[ \n]*")
"""What matters for joining lines: brackets, placeholders of literals and comments, line ends."""

_ODD_IMPORT = re.compile(r"[('\"]")
_PLACE = re.compile(r"['\"#]")
_FIRST = re.compile(r"(?: *#?\n)*[^ #\n]")
_IMPORT = re.compile(r"^(?:import|from)\b.*", re.MULTILINE)
_OTHER = re.compile(r"^(?!import\b|from\b)[^ #\n]", re.MULTILINE)
_GUARD = re.compile(r"^if __name__ == ['\"]:.*(?:\n(?:[ #].*)?)*\Z", re.MULTILINE)
_GUARD_LINE = re.compile(r"^if __name__ == (['\"])__main__\1:", re.MULTILINE)


def wrap(source: str) -> str | None:
    """Return the rewritten program; None if the harness would execute it as it is."""
    return _wrap_text(source) or _wrap_tree(source)


def _wrap_text(source: str) -> str | None:
    """Rewrite a program without parsing it; None if it is not plain enough."""
    if len(source) > _PLAIN_CHARS or ("\\" in source and _ODD_ESCAPE.search(source)):
        return None
    for text in _ODD_TEXTS.split("|"):
        if text in source:
            return None
    taken: list[str] = []
    bare = _TOKEN.sub(lambda match: _take(match[0], taken), source)
    if _is_odd(bare):
        return None
    if _brackets_span_lines(bare):
        if len(taken) != len(_PLACE.findall(bare)):  # an unterminated literal
            return None
        bare, taken = _statements_on_one_line(bare, taken)
        if _brackets_span_lines(bare):
            return None
        source = _put_back(taken, bare)
    if _ODD_STATEMENT.search(bare) or not _FIRST.match(bare) or not _OTHER.search(bare):
        return None
    body = source
    if "__name__" in bare:
        guard = _GUARD.search(bare)
        if guard is None or "import" in guard[0] or bare.count("__name__") > 1:
            return None
        body, replaced = _GUARD_LINE.subn("if 1:", body)
        if replaced != 1:
            return None
    imports = _IMPORT.findall(bare)
    body, hoisted = _IMPORT.subn("pass", body)
    if hoisted != len(imports) or _ODD_IMPORT.search("\n".join(imports)):
        return None
    imports.append(f"def {FUNCTION}():\n ")
    return "\n".join(imports) + body.replace("\n", "\n ")


def _take(token: str, taken: list[str]) -> str:
    """Take a literal or comment; return its placeholder: one quote, or a comment's first character."""
    taken.append(token)
    return "#" if token[0] == "#" else "'"


def _put_back(taken: list[str], bare: str) -> str:
    """Return the program with `taken` put back."""
    first, *after = _PLACE.split(bare)
    return first + "".join([part for pair in zip(taken, after, strict=True) for part in pair])


def _is_odd(bare: str) -> bool:
    """Return whether a program, without literals and comments, has what could make a difference anywhere."""
    if not bare.isascii() or not bare.replace("\n", "").isprintable():  # tabs, non-ASCII identifiers
        return True
    if ";" in bare or "yield" in bare or _ODD_QUOTE.search(bare):
        return True
    return "Solution" in bare and _ODD_CLASS.search(bare) is not None


def _statements_on_one_line(bare: str, taken: list[str]) -> tuple[str, list[str]]:
    """Return the program without line ends and comments in brackets, and what is left of `taken`."""
    depth, parts, at = 0, [], 0
    kept, tokens = [], iter(taken)
    for match in _JOINT.finditer(bare):
        first = match[0][0]
        if first in "([{":
            depth += 1
        elif first in ")]}":
            depth -= 1
        else:
            token = next(tokens) if first != "\n" else ""
            if depth > 0 and first in "#\n":
                parts.append(bare[at : match.start()])
                at = match.end()
            elif token:
                kept.append(token)
    parts.append(bare[at:])
    return " ".join(parts), kept


def _brackets_span_lines(bare: str) -> bool:
    taken = 1
    while taken:
        bare, taken = _BRACKETS.subn("", bare)
    return _BRACKET.search(bare) is not None


def _wrap_tree(source: str) -> str | None:
    try:
        tree = ast.parse(_without_main_guard(source))
        imports: list[ast.stmt] = []
        others: list[ast.stmt] = []
        for statement in tree.body:
            (imports if isinstance(statement, ast.Import | ast.ImportFrom) else others).append(statement)
        no_arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        function = ast.FunctionDef(name=FUNCTION, args=no_arguments, body=others, decorator_list=[], lineno=-1)
        return f"{_unparse(imports)}\n{ast.unparse(function)}"
    except Exception:
        return None


def _without_main_guard(source: str) -> str:
    """Inline a final `if __name__ == '__main__'` block; anything else is left as it is."""
    try:
        tree = ast.parse(source)
        last = tree.body[-1]
        if isinstance(last, ast.If) and ast.unparse(last.test).strip() == "__name__ == '__main__'":
            return f"{_unparse(tree.body[:-1])}\n{_unparse(last.body)}"
    except BaseException:  # noqa: S110  # the harness swallows all of it too
        pass
    return source


def _unparse(statements: list[ast.stmt]) -> str:
    return ast.unparse(statements)  # type: ignore[arg-type]  # it takes lists too, not quite as it takes modules
