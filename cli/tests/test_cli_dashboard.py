"""`dashboard`: which pod it forwards to, and when the browser is opened."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from deepcoder_cli.commands import dashboard
from deepcoder_cli.proxy import Proxy
from deepcoder_client.connection import Kind
from deepcoder_client.errors import NotFound, Refused

READY = {"conditions": [{"type": "Ready", "status": "True"}]}


class Connection:
    """Pods by label selector."""

    def __init__(self, **pods: dict[str, Any]) -> None:
        self.pods = [{"metadata": {"name": name.replace("_", "-")}, "status": status} for name, status in pods.items()]
        self.asked: list[Any] = []

    def list(self, kind: Kind, namespace: str | None, **query: str) -> dict[str, Any]:
        self.asked.append((kind.plural, namespace, query))
        return {"items": self.pods}

    def lacking(self, *_: Any) -> None:
        return None


def client_of(connection: Connection) -> Any:
    return SimpleNamespace(connection=connection, namespace="team")


def test_only_a_pod_that_the_chart_labels_as_the_dashboard_is_given_the_users_token() -> None:
    """Another application's pod may be called something-web, and the chart's anything."""
    connection = Connection(starting={}, page_0=READY)
    assert dashboard._page(client_of(connection), "deepcoder") == "page-0"
    assert connection.asked == [("pods", "deepcoder", {"labelSelector": "deepcoder.dev/component=dashboard"})]


def test_a_dashboard_that_is_not_there_is_told_from_one_that_is_not_ready() -> None:
    with pytest.raises(Refused, match="no dashboard pod is ready in namespace deepcoder"):
        dashboard._page(client_of(Connection(starting={})), "deepcoder")
    with pytest.raises(NotFound, match=r"a chart of an earlier release does not label its pods .*: upgrade it"):
        dashboard._page(client_of(Connection()), "deepcoder")


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Proxy]]:
    made: list[Proxy] = []

    def listening(*given: Any) -> Proxy:
        made.append(Proxy(*given))
        return made[-1]

    monkeypatch.setattr(dashboard, "Proxy", listening)
    yield made
    for proxy in made:
        proxy.close()


def test_a_browser_in_the_terminal_is_served_before_it_returns(
    proxies: list[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """w3m and lynx, and whatever BROWSER names, are waited for until the user leaves them."""
    shown = []

    def browse(page: str) -> None:
        target = Path(unquote(urlsplit(page).path)).read_text().partition("url=")[2].partition('"')[0]
        address = urlsplit(target)
        browser = http.client.HTTPConnection("127.0.0.1", proxies[0].port, timeout=2)
        browser.request("GET", f"{address.path}?{address.query}")
        shown.append(browser.getresponse().status)
        browser.close()
        raise KeyboardInterrupt  # Ctrl-C

    monkeypatch.setattr(dashboard.webbrowser, "open", browse)
    monkeypatch.setattr(dashboard, "Bearer", lambda *_: SimpleNamespace(token=lambda: "token"))
    where: Any = SimpleNamespace(client=lambda: client_of(Connection(page_0=READY)))
    with pytest.raises(KeyboardInterrupt):
        dashboard.dashboard(where, "demo", 0, False, "deepcoder", None)
    assert shown == [200]
