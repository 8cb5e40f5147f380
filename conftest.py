"""What holds for the tests of all parts: how hypothesis is set, and that every worker collects the same tests.

Hypothesis fails an example that takes over 200 ms; how long something takes is measured in `benchmarks/`, never here.
Workers whose tests come in another order run nothing at all, and where parameters come from a set the order hangs on
the seed of hashes: `make test` draws one for all workers of a run, which goes no further than them. What tests start
draws its own, as it does for users, or what depends on the order of a set would never be seen.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("PYTHONHASHSEED", None)
