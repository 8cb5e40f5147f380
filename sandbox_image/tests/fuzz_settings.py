"""How much hypothesis draws: short and always the same in `make test`, afresh and much more in `make test-long`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_ON_ANY_MACHINE = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

SHORT = settings(derandomize=True, max_examples=300, **_ON_ANY_MACHINE)
LONG = settings(max_examples=20_000, print_blob=True, **_ON_ANY_MACHINE)
