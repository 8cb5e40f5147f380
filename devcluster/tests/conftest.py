"""What tests of the machine's examination share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def empty_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No wheels, and folders of this machine's Go and uv in which nothing is yet: the machine's own are some hundred
    thousand files, all of which an examination looks at."""
    for variable in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    place = tmp_path_factory.mktemp("tools")
    for variable in ("UV_CACHE_DIR", "GOCACHE", "GOMODCACHE"):
        monkeypatch.setenv(variable, str(place / variable))
    return place
