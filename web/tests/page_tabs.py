"""Tabs of the page before the stand-in server, and how long a test waits for what they show."""

from __future__ import annotations

import time
from collections.abc import Callable

from page_standin import NAMESPACE, TOKEN, Standin
from playwright.sync_api import Page, expect

PATIENCE_MS = 60_000
"""For what a page asks and shows in the end: a busy machine is slow."""

# A headless browser takes every tab as seen: here each can be told that it is not.
TAB = f"""
try {{ sessionStorage.setItem("deepcoder-token", "{TOKEN}"); }} catch {{}}
let hidden = false;
Object.defineProperty(document, "hidden", {{ get: () => hidden }});
window.hide = (value) => {{ hidden = value; document.dispatchEvent(new Event("visibilitychange")); }};
"""


def address(standin: Standin, tab: str, name: str = "demo") -> str:
    return f"{standin.url}/#/runs/{NAMESPACE}/{name}/{tab}"


def live(page: Page) -> None:
    expect(page.get_by_text("live", exact=True)).to_be_visible()


def effects_ran(page: Page) -> None:
    """Wait for what components do after what they show: their effects come with the next frame, and after a timer."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_MS / 1000
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)
