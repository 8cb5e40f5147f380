"""`kubectl_complete-deepcoder`: kubectl runs this to complete words after `kubectl deepcoder`.

It gets these words, the last one unfinished, and prints one candidate per line, with a description after a tab. The
last line tells the shell whether to offer files (`:0`) or not (`:4`). Nothing here may fail or wait for long, because a
completion that breaks is worse than none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from click.shell_completion import ShellComplete

from deepcoder_cli.app import app

_NO_FILES, _DEFAULT = 4, 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the candidates."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    complete = ShellComplete(app, {}, "kubectl deepcoder", "_UNUSED")
    try:
        found = complete.get_completions(words[:-1], words[-1] if words else "")
    except Exception as error:  # whatever fails, the shell continues without candidates
        sys.stderr.write(f"kubectl_complete-deepcoder: {type(error).__name__}: {error}\n")
        found = []
    files = [item for item in found if item.type in ("file", "dir")]
    for item in found:
        if item.type == "plain":
            sys.stdout.write(f"{item.value}\t{item.help}\n" if item.help else f"{item.value}\n")
    sys.stdout.write(f":{_DEFAULT if files else _NO_FILES}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
