"""Storage that puts a manifest and whose answer is lost: the process that put it cannot know, and puts it again."""

from __future__ import annotations

from typing import Any

import pytest

from deepcoder_contracts.layout import MANIFEST
from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint.errors import StorageUnavailable


def lose_the_first_answer(monkeypatch: pytest.MonkeyPatch, store: type) -> list[str]:
    """Of all puts of manifests to stores of this class; keys of the manifests that were put, as they are put."""
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0)
    put, keys = store.put_bytes, list[str]()  # type: ignore[attr-defined]

    def put_bytes(self: Any, key: str, data: bytes, **how: Any) -> Any:
        stored = put(self, key, data, **how)
        if key.endswith(MANIFEST):
            keys.append(key)
            if len(keys) == 1:
                raise StorageUnavailable("the line is dead")
        return stored

    monkeypatch.setattr(store, "put_bytes", put_bytes)
    return keys
