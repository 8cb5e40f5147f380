"""The names that the released reward imported before every program, created once per zygote.

Programs have them in taco-compat. Functions have them in strict, too: the official solutions of TACO and APPS rely on
them (`def f(self, nums: List[int])`), as on the sites that they come from. Fails as imports do.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = (
    *("bisect", "collections", "copy", "datetime", "fractions", "functools", "heapq", "io", "itertools", "math"),
    *("operator", "os", "random", "re", "string", "sys", "time"),
)
_NAMES = {
    "bisect": "bisect_left bisect_right insort",
    "collections": "ChainMap Counter OrderedDict defaultdict deque",
    "copy": "deepcopy",
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "itertools": "accumulate chain combinations count cycle groupby islice pairwise permutations product repeat"
    " zip_longest",
    "math": "atan2 ceil comb cos exp fabs factorial floor gcd inf isqrt log log10 log2 pi prod sin sqrt tan",
    "operator": "iand itemgetter or_ sub xor",
    "os.path": "commonprefix",
    "random": "randrange shuffle",
    "string": "ascii_lowercase ascii_uppercase",
    "sys": "stdin stdout",
    "typing": "Any Callable Deque Dict Generator Iterable Iterator List Optional Set Tuple Union",
}


def preamble() -> dict[str, Any]:
    """Return the names."""
    names: dict[str, Any] = {"re_search": importlib.import_module("re").search}
    for module, listed in _NAMES.items():
        names.update({name: getattr(importlib.import_module(module), name) for name in listed.split()})
    for module in _MODULES:
        names[module] = importlib.import_module(module)
    return names


PREAMBLE = preamble()
