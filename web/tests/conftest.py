"""Chromium for tests of the page and its scripts, and the server that they stand before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from page_standin import Standin
from page_tabs import PATIENCE_MS, TAB
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from devcluster import testprograms
from devcluster.config import cache_root


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


@pytest.fixture
def standin() -> Iterator[Standin]:
    """A server of one test."""
    with Standin().served() as found:
        yield found


@pytest.fixture
def context(chromium: Browser, standin: Standin) -> Iterator[BrowserContext]:
    """Signed in, in every tab, gone before the server is; an error in a script fails the test."""
    found = chromium.new_context(viewport={"width": 1300, "height": 900})
    found.set_default_timeout(PATIENCE_MS)
    found.add_init_script(TAB)
    errors: list[str] = []
    found.on("weberror", lambda error: errors.append(str(error.error)))
    yield found
    found.close()
    assert not errors, errors


@pytest.fixture
def tab(context: BrowserContext) -> Page:
    """The only one, where a test needs no more."""
    return context.new_page()
