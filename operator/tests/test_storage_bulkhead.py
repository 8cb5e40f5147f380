"""Storage of many tenants: one whose server is away, or who has many, costs the others nothing."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from deepcoder_operator.storage.s3 import Buckets, Credentials, Target

_SIXTY_FOUR = """
from deepcoder_operator.storage.s3 import Buckets, Credentials, Target

def kilobytes():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])

buckets = Buckets()
before = kilobytes()
for i in range(64):
    buckets.open(Target("http://127.0.0.1:9", None, Credentials(f"key-{i}", "secret", source="Secret s3")), "b")
print((kilobytes() - before) / 1024)
"""


def test_sixty_four_tenants_cost_less_than_sixty_megabytes() -> None:
    done = subprocess.run([sys.executable, "-c", _SIXTY_FOUR], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) < 60


def test_known_tenant_does_not_wait_while_a_client_is_made_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = Buckets()
    known, new = (Target("http://127.0.0.1:9", None, Credentials(name, "s")) for name in ("known", "new"))
    client = buckets.open(known, "b")._client
    making, made = threading.Event(), threading.Event()

    def slow(target: Target, key: str) -> object:
        making.set()
        assert made.wait(10)
        return client

    monkeypatch.setattr(buckets, "_make", slow)
    thread = threading.Thread(target=buckets.open, args=(new, "b"))
    thread.start()
    assert making.wait(10)
    answered = threading.Thread(target=buckets.open, args=(known, "b"))
    answered.start()
    answered.join(5)
    waited = answered.is_alive()
    made.set()
    thread.join(10)
    assert not waited
