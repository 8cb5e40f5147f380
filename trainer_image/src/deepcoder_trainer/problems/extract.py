"""Which part of a response is the program: its last fenced block.

Only the *response* is looked at. A prompt often holds a fenced example, and a grader that searched prompt and
response together could grade the example. A block that was opened and never closed is no program: the response was
cut, and running half of it would only measure where the cut fell.
"""

from __future__ import annotations

import re

_OPENING = re.compile(r"```[ \t]*[^\s`]*[ \t]*\r?\n")
_CLOSING = re.compile(r"^[ \t]*```", re.MULTILINE)


def last_fenced_block(text: str) -> str | None:
    """Content of the last closed ``` block of a response, None without one.

    The opening fence may carry a language word and may stand behind other text on its line; the closing fence
    stands at the start of a line, so that a program may print or quote backticks within one.
    """
    block: str | None = None
    position = 0
    while (opening := _OPENING.search(text, position)) is not None:
        closing = _CLOSING.search(text, opening.end())
        if closing is None:
            break
        block = text[opening.end() : closing.start()]
        position = closing.end()
    return block
