"""Which part of a response is the program."""

from __future__ import annotations

import time

import pytest

from deepcoder_trainer.problems.extract import last_fenced_block


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("first ```py\na\n``` then\n```python\nb\n```\nbye", "b\n"),
        ("```c++ \r\nx\r\n```", "x\r\n"),
        ("```python\n```", ""),
        ("```python\na\n```\nthinking\n```python\ncut off", "a\n"),
        ("<think>Say\n```python\na\nno, better:</think>\n```python\nb\n```", "b\n"),
        ("```python\na\n```python\ncut off", "a\n"),
        ("```python\na\n```text\n1\n```\n```python\nb\n```", "b\n"),
        ("```python\na\n```</answer>\n", "a\n"),
        ('```python title="a.py"\na\n```\nThat prints\n```\n1\n```', "1\n"),
        ("```{.python .numbered}\na\n```\nDone.\n```", "a\n"),
        ("  ```python {1}\n  a\n  ```\n", "a\n"),
        ("Write ```python like this\n```python\na\n```", "a\n"),
        ("```python\na\n```That is all.\n\nNo ``` more.", "a\n"),
        ("````markdown\n```python\na\n```\n````\n", "a\n"),
        ("````python\na\n````\n", "a\n"),
        ("~~~python\na\n~~~\n", None),
        ("```python\nif a:\n  print(1)```", "if a:\n  print(1)"),
        ("```python\na```  \nThat is all.", "a"),
        ("```python\r\na```\r\nThat is all.\r\n", "a"),
        ("```python\nprint('```')\nb```", "print('```')\nb"),
        ("```python\na```\nor\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nas ``` x ```\nand ``` y ```\n", "a\n"),
        ("1. So:\n\n   ```python\n   if 1:\n\n       a\n   ```\n", "if 1:\n\n    a\n"),
        ("- So:\n  ```python\n  if 1:\n      a\n b\nc\n  ```\n", "if 1:\n    a\nb\nc\n"),
        ("\t```python\n\tif 1:\n\t\ta\n\t```", "if 1:\n\ta\n"),
        ("- So:\n  ```python\n\nif 1:\n  a\n  ```\n", "\nif 1:\n  a\n"),
        ("So: ```python\n  a\n```", "  a\n"),
        ("print(1)", None),
        ("```python\ncut off", None),
        ("", None),
    ],
)
def test_last_closed_block_is_the_program(text: str, block: str | None) -> None:
    assert last_fenced_block(text) == block


def test_backticks_within_a_line_do_not_end_the_program() -> None:
    assert last_fenced_block("```python\nprint('```')\nprint(2)\n```") == "print('```')\nprint(2)\n"


@pytest.mark.parametrize("text", ["```" + " " * 300_000, "```" + " x" * 200_000, ("```" + " " * 80) * 4_000])
def test_a_long_response_of_nothing_is_looked_through_at_once(text: str) -> None:
    """A model that has gone astray repeats what it likes, and the loop that reads it has others to serve."""
    began = time.process_time()
    assert last_fenced_block(text) is None
    assert time.process_time() - began < 5
