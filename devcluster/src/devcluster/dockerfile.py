"""Finds the files that a Dockerfile takes from its context; only these decide whether its image is built again.

Pure. It understands COPY without --from and ARG defaults, which is all that the project's Dockerfiles use. A COPY of
the whole context or with a wildcard is refused, because then every file would be an input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_CONTINUED = re.compile(r"\\\n")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class DockerfileError(ValueError):
    """A COPY whose files are not known in advance."""


def copied_paths(text: str, arguments: Mapping[str, str] | None = None) -> list[str]:
    """Paths in the context that COPY names, in order and without repetition; `arguments` are build arguments."""
    values: dict[str, str] = {}
    found: list[str] = []
    for line in _CONTINUED.sub(" ", text).splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "ARG" and "=" in words[1]:
            name, _, default = words[1].partition("=")
            values[name] = (arguments or {}).get(name, default)
        if words[0] != "COPY" or any(word.startswith("--from") for word in words):
            continue
        for source in [word for word in words[1:-1] if not word.startswith("--")]:
            path = _VARIABLE.sub(lambda match: values.get(match[1], match[0]), source).rstrip("/")
            if path in ("", ".") or "$" in path or "*" in path:
                raise DockerfileError(f"{line.strip()!r}: name the files and directories that are copied")
            if path not in found:
                found.append(path)
    return found
