"""The only source of randomness: a seed is a function of (run seed, purpose, ids), never of what ran before.

Work that is resumed, retried or rescheduled draws the same numbers as the first time, whatever happened in between. No
generator of ours lives across steps, so a checkpoint needs no generator state. There is one exception: unless the run
is deterministic, training responses are drawn by each vLLM engine's own generator, which is seeded from here again in
every attempt.
"""

from __future__ import annotations

import hashlib
import json


def seed(run_seed: int, purpose: str, *ids: int | str) -> int:
    """Return a seed in [0, 2**63): from the first 8 bytes of a SHA-256 over the canonical arguments.

    `purpose` separates uses ("sampling", "order", "evaluation", …); `ids` identify group, sample or epoch.
    """
    key = json.dumps([run_seed, purpose, *ids], separators=(",", ":"), ensure_ascii=False).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
