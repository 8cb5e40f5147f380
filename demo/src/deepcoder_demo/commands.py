"""Running other programs: output shown or kept, a deadline always, and a failure that shows what was said.

The demo talks to devcluster, helm, kubectl and the trainer only through their command lines, as a user would; what
works here works by hand.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class CommandFailed(Exception):
    """A command ended with an error or ran past its deadline."""


def run(
    command: Sequence[str | Path],
    *,
    seconds: float,
    show: bool = False,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a command and return its standard output ('' when shown); raises CommandFailed with the last lines."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **(env or {})},
            input=stdin,
            stdout=None if show else subprocess.PIPE,
            stderr=None if show else subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(f"{words[0]} is not installed, or not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"`{' '.join(words)}` did not end within {seconds:.0f} s") from error
    if done.returncode != 0:
        said = "" if show else ":\n" + "\n".join(done.stdout.splitlines()[-30:])
        raise CommandFailed(f"`{' '.join(words)}` ended with status {done.returncode}{said}")
    return done.stdout or ""
