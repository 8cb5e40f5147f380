"""Removes the descriptions from custom resource definitions. Pure.

KubeRay's CRDs embed the whole pod template with its documentation: megabytes, which cost the API server seconds to load
and hundreds of megabytes of memory. The validation stays; only what `kubectl explain` would print is removed. It works
on the text as controller-gen writes it, where a description is one scalar and its continuation lines.
"""

from __future__ import annotations

import re

_DESCRIPTION = re.compile(r"^(?P<indent> *)description: \S")


def without_descriptions(text: str) -> str:
    """`text` (YAML) without the descriptions in its schemas; a property named description stays."""
    kept: list[str] = []
    skipped_indent: int | None = None
    for line in text.splitlines():
        if skipped_indent is not None:
            indent = len(line) - len(line.lstrip(" "))
            if not line.strip() or indent > skipped_indent:
                continue
            skipped_indent = None
        found = _DESCRIPTION.match(line)
        if found is not None:
            skipped_indent = len(found["indent"])
            continue
        kept.append(line)
    return "\n".join(kept) + "\n"
