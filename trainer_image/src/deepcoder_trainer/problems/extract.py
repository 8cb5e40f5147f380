"""Finds the program in a response: its last fenced block, or what LiveCodeBench's own harness would take.

Only the *response* is searched. A prompt often has a fenced example, and a grader that searched prompt and response
together could grade the example. A block that was opened and never closed is not a program: the response was cut off,
and running half of it would only measure where. A block left open while the model thinks aloud does not swallow the
program after it: a fence with a language word ends an open block and begins a new one.
"""

from __future__ import annotations

import re

from deepcoder_contracts.stage import Extraction

_OPENING = re.compile(  # none gives back: a model may write nothing but spaces
    r"```(?:[ \t]*+[^\s`]*+[ \t]*+\r?\n|(?P<attributes>[A-Za-z{][^`\n]*+\n))"
)
_CLOSING = re.compile(r"^[ \t]*```([A-Za-z][^\s`]*+[ \t]*+\r?\n)?", re.MULTILINE)
_CLOSING_LINE_END = re.compile(r"```()[ \t]*+\r?$", re.MULTILINE)


def last_fenced_block(text: str) -> str | None:
    """Content of the last closed ``` block of a response, None without one.

    The opening fence may carry a language word and may stand behind other text on its line. Where it begins its line,
    it may carry attributes behind the word (```python title="a.py"). The closing fence begins its line, so that a
    program may print or quote backticks within one. A closing fence with a language word opens the next block. Where no
    block has such a fence, one at the end of a line closes it. Fences are of backticks; a longer one may be closed by
    three. Where the opening fence is indented, as below an item of a list, each line of the block loses as much
    indentation as the fence has, unless the program stands at the start of its lines already.
    """
    block = _last_block(text, _CLOSING) or _last_block(text, _CLOSING_LINE_END)
    if block is None:
        return None
    fence, begin, end = block
    return _outdented(text[begin:end], _before(text, fence))


def _last_block(text: str, closing_fence: re.Pattern[str]) -> tuple[int, int, int] | None:
    """Where the last block's fence, its content, and its closing fence begin."""
    block: tuple[int, int, int] | None = None
    position = 0
    while (opening := _opening(text, position)) is not None:
        closing = closing_fence.search(text, opening.end())
        if closing is None:
            break
        block = opening.start(), opening.end(), closing.start()
        position = closing.start() if closing[1] else closing.end()
    return block


def _opening(text: str, position: int) -> re.Match[str] | None:
    for found in _OPENING.finditer(text, position):
        if found["attributes"] is None or not _before(text, found.start()).strip(" \t"):
            return found
    return None


def _before(text: str, position: int) -> str:
    """What stands before a position on its line."""
    return text[text.rfind("\n", 0, position) + 1 : position]


def _outdented(block: str, before: str) -> str:
    """The block without what indents its opening fence, which stands behind `before` on its line, as Markdown has it:
    a line that is indented by less loses what it has. A model may indent the fences alone: then the first line is not
    indented, and to outdent the lines below it would take a program apart that Python accepts."""
    if not before or before.strip(" \t"):
        return block
    lines = block.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if not first.startswith((" ", "\t")):
        return block
    return "\n".join(_behind(line, before) for line in lines)


def _behind(line: str, indent: str) -> str:
    width = min(len(indent), len(line) - len(line.lstrip(" \t")))
    return line[width:]


def livecodebench_block(text: str) -> str | None:
    """What lies between the last two lines that have ``` in them, as LiveCodeBench's harness reads a response.

    It knows no language word and no closing fence: behind a block that was left open it takes the prose between the
    blocks, and a line that only mentions ``` counts. None with fewer than two such lines.
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) >= 2 else None


def program_of(text: str, rule: Extraction) -> str | None:
    """The program of a response by one of the rules, None without one."""
    return livecodebench_block(text) if rule is Extraction.LIVECODEBENCH else last_fenced_block(text)
