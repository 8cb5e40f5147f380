"""Chromium for tests of the page and its scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from devcluster import testprograms
from devcluster.config import cache_root

PATIENCE_MS = 60_000
"""For what a page shows in the end: a busy machine is slow."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Without its own sandbox: tests run as root. No longer than a module: Playwright's event loop runs meanwhile, and
    beside it no other test's could."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        path = testprograms.chromium(cache_root())
        with closing(playwright.chromium.launch(executable_path=path, args=arguments)) as found:
            yield found
