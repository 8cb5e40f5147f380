"""The server that most tests of the client call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The `Server` that the test's module defines or imports."""
    made = request.module.Server()
    yield made
    made.http.shutdown()
    made.http.server_close()
