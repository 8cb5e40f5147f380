"""The server that most tests of the client call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted_api import Server


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()
