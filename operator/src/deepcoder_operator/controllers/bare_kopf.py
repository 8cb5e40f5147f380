"""kopf without the client libraries that it supports. If they are installed, it imports all their types.

The operator uses none of them, but the dashboard in the same image does, and the import would cost half a second and
many megabytes. Import kopf from this module only.
"""

from __future__ import annotations

import sys
from typing import Any

_KNOWN = ("kubernetes", "kubernetes_asyncio", "pykube")

_modules: dict[str, Any] = sys.modules  # a None there means: not to be imported
_hidden = [name for name in _KNOWN if name not in _modules]
_modules.update(dict.fromkeys(_hidden))
try:
    import kopf
finally:
    for _name in _hidden:
        del _modules[_name]

__all__ = ["kopf"]
