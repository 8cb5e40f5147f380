"""The page's pure scripts, each file of tests/js in a page of Chromium: the very engine that runs them for people."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from deepcoder_web.app import REVIEW_SECONDS
from deepcoder_web.storage_threads import DEADLINE_SECONDS, WAIT_SECONDS

WEB = Path(__file__).resolve().parents[1]
FILES = sorted((WEB / "tests" / "js").glob("*.test.js"))
RUN = "async (file) => { await import(file); return (await import('/tests/js/check.js')).results(); }"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server of the scripts and their tests."""
    handler = functools.partial(_Quiet, directory=str(WEB))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    """An empty one of that server."""
    with closing(chromium.new_page()) as found:
        found.goto(f"{address}/tests/js/")
        yield found


def test_scripts_do_what_their_tests_say(page: Page, address: str) -> None:
    for path in FILES:
        page.goto(f"{address}/tests/js/")
        results = page.evaluate(RUN, f"/tests/js/{path.name}")
        assert results, f"{path.name} has no test"
        failed = [f"{name}: {error}" for name, error in results if error]
        assert not failed, f"{path.name}:\n" + "\n".join(failed)


def test_a_failure_is_told(page: Page) -> None:
    failing = """async () => {
      const { deepEqual, equal, notEqual, results, test } = await import('/tests/js/check.js');
      test("same", () => { deepEqual({ a: [1, null] }, { a: [1, null] }); equal(NaN, NaN); notEqual(1, 2); });
      test("other", () => deepEqual({ a: [1, undefined] }, { a: [1, null] }));
      test("more", () => deepEqual([1], [1, 2]));
      test("late", async () => { await null; equal(1, 2, "numbers"); });
      test("alike", () => notEqual("a", "a"));
      return results();
    }"""
    told = {name: (error or "").partition("\n")[0] for name, error in page.evaluate(failing)}
    assert told["same"] == ""
    assert told["other"].endswith('{"a":["1","undefined"]} is not {"a":["1",null]}')
    assert told["more"].endswith('["1"] is not ["1","2"]')
    assert told["late"].endswith('numbers: "1" is not "2"')
    assert told["alike"].endswith('"a" is "a"')


def test_a_page_waits_longer_than_its_server_does_for_a_bucket() -> None:
    """Otherwise nobody reads what the server says about the bucket."""
    api = (WEB / "src" / "deepcoder_web" / "static" / "js" / "api.js").read_text()
    (found,) = re.findall(r"^const REQUEST_MS = ([\d_]+);$", api, re.MULTILINE)
    assert int(found) / 1000 > 2 * REVIEW_SECONDS + WAIT_SECONDS + DEADLINE_SECONDS
