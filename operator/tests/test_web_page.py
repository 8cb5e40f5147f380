"""The dashboard as people meet it: a process with the chart's rights, a real API server and bucket, a real browser.

The browser is Chromium; `python -m devcluster program chromium` finds or unpacks one.
"""

from __future__ import annotations

import io
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import api_audit
import chart_account
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from played_run import PlayedRun, playing
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from s3_server import BUCKET, S3Server
from web_process import serving

from deepcoder_contracts.layout import samples_key
from deepcoder_operator.kube.resources import RUNS
from devcluster import testprograms
from devcluster.config import cache_root

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SECONDS = 60_000
"""For what the page shows in the end, in milliseconds: a busy machine is slow."""
TABS = ("overview", "curves", "samples", "evaluations", "lineage", "pool")


@dataclass(frozen=True)
class Dashboard:
    """The process and whom it serves."""

    url: str
    played: PlayedRun
    account: chart_account.Account

    @property
    def run(self) -> str:
        """Address of the run in the API."""
        return f"runs/{self.played.namespace}/demo"

    @property
    def page(self) -> str:
        """Address of the run in the page."""
        return f"{self.url}/#/runs/{self.played.namespace}/demo"

    def token(self, user: str) -> str:
        """Of one of the played users."""
        found: str = json.loads(self.played.users[user].read_text())["users"][0]["user"]["token"]
        return found

    def get(self, path: str, user: str | None = "viewer", token: str | None = None) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        request = urllib.request.Request(f"{self.url}/api/v1/{path}")
        if token or user:
            request.add_header("Authorization", f"Bearer {token or self.token(str(user))}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def played(
    kubeconfig: Path, s3: S3Server, helm: str, chart: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PlayedRun]:
    """A whole run, whose last rollouts contain markup."""
    with playing(kubeconfig, s3, helm, chart, tmp_path_factory.mktemp("played")) as found:
        _spoil_samples(found)
        yield found


@pytest.fixture(scope="module")
def dashboard(
    played: PlayedRun, kubeconfig: Path, helm: str, chart: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dashboard]:
    """The dashboard, as the chart installs it, in a process of its own."""
    directory = tmp_path_factory.mktemp("web")
    values = {"web": {"enabled": True}, "s3": {"allowedEndpoints": [played.endpoint]}}  # it is on this machine
    objects = chart_account.render(helm, chart, played.namespace, values)
    web = [o for o in objects if o["metadata"]["name"].endswith("-web")]
    context = chart_account.account(played.cluster.kube, kubeconfig, web, played.namespace, directory)
    account = played.call(context.__aenter__())
    try:
        with serving(account, directory) as url:
            yield Dashboard(url, played, account)
    finally:
        played.call(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without its own sandbox: tests run as root."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=SECONDS)
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        with closing(
            playwright.chromium.launch(executable_path=testprograms.chromium(cache_root()), args=arguments)
        ) as found:
            yield found


def opened(browser: Browser, **options: Any) -> BrowserContext:
    """Cookies, storage and pages of its own."""
    context = browser.new_context(**options)
    context.set_default_timeout(SECONDS)
    return context


@pytest.fixture
def page(browser: Browser, dashboard: Dashboard) -> Iterator[Page]:
    """A page on which the viewer has signed in; whatever its console complains of fails the test."""
    context = opened(browser, viewport={"width": 1300, "height": 900})
    found = context.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    found.goto(dashboard.url)
    found.get_by_label("Bearer token").fill(dashboard.token("viewer"))
    found.keyboard.press("Enter")
    expect(found.get_by_role("heading", name="Runs")).to_be_visible()
    yield found
    context.close()
    unasked = [text for text in complaints if "401 (Unauthorized)" not in text]
    assert not unasked, unasked


def test_nobody_is_answered_without_a_token_that_the_cluster_knows(dashboard: Dashboard) -> None:
    for path in ("me", "runs", dashboard.run, f"{dashboard.run}/steps", "stream"):
        assert dashboard.get(path, user=None)[0] == 401
        assert dashboard.get(path, token="nonsense")[0] == 401


def test_a_viewer_sees_the_run_and_a_stranger_nothing_of_it(dashboard: Dashboard) -> None:
    assert [r["name"] for r in dashboard.get("runs")[1]["runs"]] == ["demo"]
    assert dashboard.get("runs", "stranger")[1]["runs"] == []
    for below in ("", "/attempts", "/steps", "/samples/steps", "/lineage", "/evaluations", "/pool"):
        assert dashboard.get(f"{dashboard.run}{below}")[0] == 200, below
        status, answer = dashboard.get(f"{dashboard.run}{below}", "stranger")
        assert (status, "view" in answer["error"]) == (403, True), below
    assert dashboard.get(f"stream?namespace={dashboard.played.namespace}&name=demo", "stranger")[0] == 403


def test_evaluations_are_shown_with_the_figures_that_the_trainer_writes(dashboard: Dashboard, page: Page) -> None:
    page.goto(f"{dashboard.page}/evaluations")
    first = page.get_by_role("region", name="Evaluations").get_by_role("row").nth(1)
    cells = ("long", "50.0\u00a0% (10.0\u00a0% to 90.0\u00a0%)", "@2\u00a050.0\u00a0%", "25.0\u00a0%", "41")
    for cell in cells:
        expect(first.get_by_role("cell", name=cell, exact=True)).to_be_visible()
    expect(page.get_by_text("long on held-back: sampled at another length")).to_be_visible()
    paired = page.get_by_role("region", name="Paired differences").get_by_role("row").nth(1)
    expect(paired.get_by_role("cell", name="0.04", exact=True)).to_be_visible()


def test_a_run_that_is_not_there_is_told_from_one_that_may_not_be_seen(dashboard: Dashboard) -> None:
    assert dashboard.get(f"runs/{dashboard.played.namespace}/other")[0] == 404
    assert dashboard.get(f"runs/{dashboard.played.namespace}/other", "stranger")[0] == 403


def test_what_is_asked_wrongly_is_refused_by_name(dashboard: Dashboard) -> None:
    for query, field in (
        ("stage=none&step=1", "stage"),
        ("stage=short&step=-1", "step"),
        ("stage=short&step=x", "step"),
    ):
        status, answer = dashboard.get(f"{dashboard.run}/samples?{query}")
        assert (status, answer["error"].startswith(f"{field}: ")) == (400, True)
    assert dashboard.get(f"{dashboard.run}/samples?stage={_stages(dashboard)[0]}&step=999999")[0] == 404


def test_every_answer_keeps_the_browser_strict(dashboard: Dashboard) -> None:
    for path in ("/", "/static/js/main.js", "/api/v1/me", "/nothing"):
        try:
            with urllib.request.urlopen(dashboard.url + path, timeout=20) as answer:
                headers = answer.headers
        except urllib.error.HTTPError as error:
            headers = error.headers
        assert "default-src 'none'" in headers["Content-Security-Policy"], path
        assert headers["X-Content-Type-Options"] == "nosniff", path


def test_each_attempt_is_told_with_its_end(dashboard: Dashboard) -> None:
    attempts = dashboard.get(f"{dashboard.run}/attempts")[1]["attempts"]
    completed = [(ordinal, "Complete", "Completed") for ordinal in (2, 3, 4)]
    assert [(a["ordinal"], a["state"], a["reason"]) for a in attempts] == [(1, "Failed", "Crashed"), *completed]


def test_steps_grow_without_being_sent_again(dashboard: Dashboard) -> None:
    first = dashboard.get(f"{dashboard.run}/steps")[1]
    again = dashboard.get(f"{dashboard.run}/steps?after={first['cursor']}")[1]
    assert (len(first["step"]), again["step"], again["reset"]) == (30, [], False)


def test_the_chain_is_walked_to_the_base(dashboard: Dashboard) -> None:
    lineage = dashboard.get(f"{dashboard.run}/lineage")[1]
    assert lineage["problem"] is None
    assert [n["digest"] for n in lineage["nodes"][1:]] == [n["parent"] for n in lineage["nodes"][:-1]]
    assert lineage["nodes"][-1]["parent"] is None


def test_the_rights_that_the_chart_grants_it_are_those_it_uses(dashboard: Dashboard, kubeconfig: Path) -> None:
    for below in ("", "/attempts", "/pool"):
        dashboard.get(f"{dashboard.run}{below}")
    used = {
        (r.group, r.resource, r.verb)
        for request in api_audit.requests(kubeconfig, dashboard.account.user)
        for r in request.rights
    }
    granted = {(r.group, r.resource, r.verb) for r in api_audit.granted(dashboard.account.roles)}
    assert used == granted


def test_every_tab_shows_what_it_is_for(page: Page, dashboard: Dashboard) -> None:
    page.get_by_role("link", name="demo", exact=True).click()
    expect(page.get_by_text("Complete").first).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("Crashed"))).to_be_visible()
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator(".chart canvas").first).to_be_visible()
    expect(page.get_by_text(re.compile("^Reward, 30 points to step 30"))).to_be_attached()
    page.get_by_role("tab", name="Evaluations").click()
    expect(page.get_by_role("row", name=re.compile("held-back")).first).to_contain_text("50.0")
    page.get_by_role("tab", name="Lineage").click()
    expect(page.get_by_text(re.compile("^All .* links hold"))).to_be_visible()
    page.get_by_role("tab", name="Judges").click()
    expect(page.get_by_text("No SandboxPool judges for this run")).to_be_visible()


def test_a_rollout_is_text_whatever_it_looks_like(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.page}/samples")
    page.get_by_role("button", name=re.compile("^problem-0 · 0")).click()
    expect(page.get_by_role("region", name="Response")).to_contain_text(HOSTILE)
    assert page.locator("pre img, pre script").count() == 0
    assert "owned" not in page.title()


def test_a_change_is_shown_without_a_reload(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.page}/overview")
    expect(page.get_by_text("live", exact=True)).to_be_visible()
    page.evaluate("window.__same = true")
    progress = {"step": 7, "maxSteps": 9, "display": "7/9", "time": "2026-01-01T00:00:00Z"}
    played = dashboard.played
    change = played.cluster.kube.patch(RUNS, played.namespace, "demo", {"status": {"progress": progress}}, "status")
    played.call(change)
    expect(page.get_by_text("7/9")).to_be_visible()
    assert page.evaluate("window.__same") is True


def test_keys_alone_lead_everywhere(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.page}/overview")
    page.reload()  # the focus is nowhere then; the token stays with the tab
    expect(page.get_by_role("tab", name="Overview")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.get_by_role("tab", name="Overview").focus()
    for name in ("Curves", "Rollouts"):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    expect(page.get_by_role("tab", name="Judges")).to_be_focused()


@pytest.mark.parametrize(
    ("scheme", "width", "theme"),
    [("light", 1300, "System"), ("dark", 1300, "System"), ("light", 360, "System"), ("light", 1300, "Dark")],
)
def test_axe_finds_nothing_serious(browser: Browser, dashboard: Dashboard, scheme: Any, width: int, theme: str) -> None:
    # The checker is put into the page, which the page's own policy would refuse.
    context = opened(browser, viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    found: list[str] = []

    def look(what: str) -> None:
        # What is in order need not be told: to do so takes as long as to look.
        violations = page.evaluate("axe.run({resultTypes: ['violations']}).then((results) => results.violations)")
        found.extend(f"{what}: {v['impact']} {v['id']}: {v['help']}" for v in violations)
        beside = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if beside > 0:
            found.append(f"{what}: {beside} pixels wider than the screen")

    page.goto(dashboard.url)
    page.evaluate(Axe().axe_script)  # once: the document stays, whatever it shows
    expect(page.get_by_label("Bearer token")).to_be_visible()
    page.get_by_label("Theme").select_option(theme)
    look("sign in")
    page.get_by_label("Bearer token").fill("nonsense")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    look("refused")
    page.get_by_label("Bearer token").fill(dashboard.token("viewer"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="demo", exact=True)).to_be_visible()
    look("runs")
    for tab in TABS:
        page.goto(f"{dashboard.page}/{tab}")
        expect(page.locator("#panel > *").first).to_be_visible()
        page.wait_for_load_state("domcontentloaded")
        look(tab)
        if tab == "samples":
            page.get_by_role("button", name=re.compile("^problem-0 · 0")).first.click()
            expect(page.get_by_role("region", name="Response")).to_be_visible()
            look("a rollout")
    here = f"{dashboard.played.namespace}/demo"
    page.goto(f"{dashboard.url}/#/compare/{here}/{here}")
    expect(page.locator(".chart canvas").first).to_be_visible()
    look("compare")
    context.close()
    assert not found, found


def test_a_token_that_is_refused_is_told_and_another_may_be_given(browser: Browser, dashboard: Dashboard) -> None:
    context = opened(browser)
    page = context.new_page()
    page.goto(dashboard.url)
    page.get_by_label("Bearer token").fill("nonsense")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    page.get_by_label("Bearer token").fill(dashboard.token("stranger"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("There is no DeepCoderRun here yet, or none that you may list.")).to_be_visible()
    context.close()


def _stages(dashboard: Dashboard) -> list[str]:
    return list(dashboard.get(dashboard.run)[1]["settings"]["stages"])


def _spoil_samples(played: PlayedRun) -> None:
    """What a model may write as well."""
    client: Any = played.cluster.s3.client()
    keys = [o["Key"] for o in client.list_objects_v2(Bucket=BUCKET, Prefix="")["Contents"]]
    suffix = re.compile(
        rf"/{re.escape(played.namespace)}/.*{re.escape(samples_key('', 0).split('step-')[0])}step-\d+\.parquet$"
    )
    for key in (k for k in keys if suffix.search(f"/{k}")):
        table = pq.read_table(io.BytesIO(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()))
        rows = [row | {"response": row["response"] + HOSTILE} for row in table.to_pylist()]
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), out)
        client.put_object(Bucket=BUCKET, Key=key, Body=out.getvalue())
