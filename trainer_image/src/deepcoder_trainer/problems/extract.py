"""Finds the program in a response: its last fenced block, or what LiveCodeBench's own harness would take.

Only the *response* is searched. A prompt often has a fenced example, and a grader that searched prompt and response
together could grade the example. A block that was opened and never closed is not a program: the response was cut off,
and running half of it would only measure where. A block left open while the model thinks aloud does not swallow the
program after it: a fence with a language word ends an open block and begins a new one.
"""

from __future__ import annotations

import re

from deepcoder_contracts.stage import Extraction

_OPENING = re.compile(  # possessive, so that a response of spaces alone does not backtrack
    r"```(?:[ \t]*+[^\s`]*+[ \t]*+\r?\n|(?P<attributes>[A-Za-z{][^`\n]*+\n))"
)
_CLOSING = re.compile(r"^[ \t]*```([A-Za-z][^\s`]*+[ \t]*+\r?\n)?", re.MULTILINE)
_CLOSING_LINE_END = re.compile(r"```()[ \t]*+\r?$", re.MULTILINE)


def last_fenced_block(text: str) -> str | None:
    """Return the content of the last closed ``` block of a response, or None without one.

    - The opening fence may have a language word, and may follow other text on its line. At the beginning of its line,
      it may have attributes after the word (```python title="a.py").
    - The closing fence is at the beginning of its line, so that a program may contain backticks within a line. With a
      language word, it opens the next block. If no block has such a closing fence, one at the end of a line counts.
    - Fences consist of backticks. A longer one may be closed by three.
    - If the opening fence is indented, as in a list, each line of the block loses as much indentation as the fence has,
      unless the program is not indented.
    """
    block = _last_block(text, _CLOSING) or _last_block(text, _CLOSING_LINE_END)
    if block is None:
        return None
    fence, begin, end = block
    return _outdented(text[begin:end], _before(text, fence))


def _last_block(text: str, closing_fence: re.Pattern[str]) -> tuple[int, int, int] | None:
    """Return the positions of the last block's opening fence, content and closing fence; None without a block."""
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
    """Return the text before a position on its line."""
    return text[text.rfind("\n", 0, position) + 1 : position]


def _outdented(block: str, before: str) -> str:
    """Return the block without the indentation of its opening fence, which follows `before` on its line.

    As in Markdown, a line that is indented by less loses all its indentation. If a model indents only the fences, the
    block's first line is not indented. Then the block is unchanged, because removing indentation from the other lines
    would break the program.
    """
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
    """Return the text between the last two lines that contain ```, as LiveCodeBench's harness reads a response.

    The harness does not distinguish opening and closing fences: after a block that was never closed, it takes the prose
    between two blocks, and a line that only mentions ``` counts. Return None with fewer than two such lines.
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) >= 2 else None


def program_of(text: str, rule: Extraction) -> str | None:
    """Return the program of a response by one of the rules, or None without one."""
    return livecodebench_block(text) if rule is Extraction.LIVECODEBENCH else last_fenced_block(text)
