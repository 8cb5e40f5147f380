"""Lines for people, in which nothing steers the terminal.

Much of what is printed was written by programs, models and other people, and a terminal executes control sequences:
they can change its title, overwrite text, or fill the clipboard. So people see control characters as `\\x1b`. A log
that does not go to a terminal is passed on byte by byte.
"""

from __future__ import annotations

import re
import sys
import unicodedata

import click

_LAYOUT = frozenset("\n\t\u200c\u200d")
"""Newline, tab, and the characters that join or separate letters of some scripts and emoji."""
_COLOUR = re.compile(r"\x1b\[[\d;:]*m")


def say(text: str, *, err: bool = False) -> None:
    """Print a line for people, which may quote text that others have written."""
    click.echo(printable(text), err=err)


def program_output(text: str) -> None:
    """Print a program's output: to a terminal only its text, to anything else unchanged."""
    if sys.stdout.isatty():
        text = printable(_COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))
    click.echo(text, nl=False, color=True)  # otherwise click removes escape sequences if there is no terminal


def printable(text: str) -> str:
    """Return text with the control characters that a terminal would execute shown as escapes."""
    return text if text.isprintable() else "".join(c if harmless(c) else _shown(c) for c in text)


def harmless(c: str) -> bool:
    """Return whether a character can be printed as it is."""
    return c.isprintable() or c in _LAYOUT or unicodedata.category(c) == "Zs"


def _shown(c: str) -> str:
    return f"\\x{ord(c):02x}" if ord(c) < 0x100 else f"\\u{ord(c):04x}"
