"""A reward for modernising legacy code: what a program does must stay, how it is written must change.

The statement shows a program in the style of Python 2 that still runs. The model answers, in its last fenced block,
with the same program as it would be written today. The answer is right if it passes the old program's tests in the
run's sandbox, and if its syntax tree has none of what the statement asks to remove: %-formatting, bare `except`,
`type(x) == …`, mutable defaults, `open` without `with`, functions without annotations. So neither a copy of the old
program nor a new one that does something else earns a reward.

The problem's tests are the old program's. Use it as `recipe.reward: modernise:reward`, with this file importable in the
trainer image.
"""

from __future__ import annotations

import ast
import re

from deepcoder_trainer.rollout.programs import Programs
from deepcoder_trainer.types import Problem

_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LONGEST_PROGRAM = 20_000
"""In characters: a parser's stack and memory grow with its input."""
_MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


async def reward(problem: Problem, response: str, programs: Programs) -> float:
    """1 if the program does what the old one did and uses none of the old ways, else 0."""
    blocks = _FENCED.findall(response)
    if not blocks or len(blocks[-1]) > LONGEST_PROGRAM:
        return 0.0
    try:
        left = legacy(blocks[-1])
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser raises the last for too deep nesting
        return 0.0
    # Running a program costs more than reading it, so one that is clearly not modern is not run.
    return 0.0 if left else float(await programs.passes(blocks[-1]))


def legacy(code: str) -> list[str]:
    """Old ways that are left, each with its line; only their plain forms are found. Raises SyntaxError."""
    tree = ast.parse(code)
    within = {id(item.context_expr) for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items}
    return [f"line {getattr(node, 'lineno', 0)}: {what}" for node in ast.walk(tree) if (what := _old(node, within))]


def _old(node: ast.AST, within: set[int]) -> str | None:
    match node:
        case ast.BinOp(left=ast.Constant(value=str()), op=ast.Mod()):
            return "%-formatting"
        case ast.ExceptHandler(type=None):
            return "bare except"
        case ast.Compare(left=ast.Call(func=ast.Name(id="type"))):
            return "type(x) == …"
        case ast.Call(func=ast.Name(id="open")) if id(node) not in within:
            return "open without with"
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return _function(node)
    return None


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if node.returns is None or any(a.annotation is None for a in every if a.arg not in ("self", "cls")):
        return f"{node.name} without annotations"
    defaults = [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]
    return f"{node.name} with a mutable default" if any(isinstance(d, _MUTABLE) for d in defaults) else None
