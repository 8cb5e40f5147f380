"""What an open page does while time passes: it follows its run over streams that a server ends, refuses or holds back.

Each test has a server of its own. What needs the real one is in the operator's tests.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from page_standin import NAMESPACE, Standin, trained
from page_tabs import address, effects_ran, live, until
from playwright.sync_api import BrowserContext, Page, expect

LOOK_MS = 10_000
"""After which a page without a stream looks anew, and one that shows judges."""

AGAIN_MS = 30_000
"""After which a page loads again what has failed, and writes times anew. Less than the silence that ends a stream."""

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_eight_tabs_of_one_browser_are_all_served(context: BrowserContext, standin: Standin) -> None:
    tabs = []
    for _ in range(8):
        page = context.new_page()
        page.goto(address(standin, "overview"))
        live(page)
        if tabs:
            tabs[-1].evaluate("hide(true)")
        tabs.append(page)
    until(lambda: len(standin.streams) == 1, "tabs that nobody sees hold no connection")
    standin.steps["demo"] = trained(0, 77)
    tabs[-1].evaluate("hide(true)")
    tabs[0].evaluate("hide(false)")
    live(tabs[0])
    expect(tabs[0].get_by_text("77/20000")).to_be_visible()


def test_eight_windows_that_are_all_seen_are_served_and_kept_up_to_date(
    context: BrowserContext, standin: Standin
) -> None:
    context.clock.install()
    pages = []
    for _ in range(8):
        page = context.new_page()
        page.goto(address(standin, "overview"))
        expect(page.get_by_text("30/20000")).to_be_visible()
        pages.append(page)
    until(lambda: len(standin.streams) == 4, "connections are left for what the pages load")
    first, later = pages[:4], pages[4:]
    standin.steps["demo"] = trained(0, 77)
    standin.change()
    for page in first:
        expect(page.get_by_text("77/20000")).to_be_visible()
    for page in later:
        page.clock.fast_forward(LOOK_MS)
        expect(page.get_by_text("77/20000")).to_be_visible()
    for page in first:
        page.close()
    for page in later:
        page.clock.fast_forward(LOOK_MS)
        live(page)


def test_an_answer_that_is_slower_than_the_run_changes_is_shown(tab: Page, standin: Standin) -> None:
    standin.hold("/lineage")
    tab.goto(address(standin, "lineage"))
    live(tab)
    for number in range(31, 36):
        standin.digest = f"sha256:{number:064x}"
        standin.problem = f"change {number}"
        standin.change()
        expect(tab.get_by_text(standin.problem)).to_be_visible()  # with it the page has the run's new checkpoint
    effects_ran(tab)
    assert standin.count("/lineage") == 1
    standin.release("/lineage")
    expect(tab.get_by_text("All 1 links hold")).to_be_visible()
    until(lambda: standin.count("/lineage") == 2, "what has changed meanwhile is asked for once more")


def test_progress_alone_asks_the_bucket_for_no_lineage(tab: Page, standin: Standin) -> None:
    tab.goto(address(standin, "lineage"))
    live(tab)
    expect(tab.get_by_text("All 1 links hold")).to_be_visible()
    for number in range(31, 36):
        asked = standin.count("/demo")
        standin.steps["demo"] = trained(0, number)
        standin.change()
        until(lambda asked=asked: standin.count("/demo") > asked, "the run is asked for")
    assert standin.count("/lineage") == 1
    standin.digest = "sha256:" + "b" * 64
    standin.change()
    expect(tab.get_by_role("table").get_by_text("bbbbbbbbbbbb")).to_be_visible()


def test_a_server_that_may_be_behind_is_said_to_be(tab: Page, standin: Standin) -> None:
    spoken = tab.locator("main [role=status]")
    for place in ("", f"#/runs/{NAMESPACE}/demo/overview"):
        standin.problem = None
        tab.goto(f"{standin.url}/{place}")
        live(tab)
        expect(spoken).to_have_text("")
        standin.problem = "runs cannot be watched: the API server is away"
        standin.change()
        expect(tab.get_by_role("alert")).to_contain_text("the API server is away")
        label = tab.get_by_text("not live", exact=True)
        expect(label).to_be_visible()
        assert "●" not in label.evaluate("(e) => getComputedStyle(e, '::before').content"), "it does not look live"
        expect(spoken).to_have_text("No longer live: not live")
        standin.problem = None
        standin.change()
        live(tab)
        expect(spoken).to_have_text("")


def test_a_full_server_is_said_to_be_and_asked_again(tab: Page, standin: Standin) -> None:
    standin.refused["/stream"] = (429, {"Retry-After": "1"})
    tab.goto(address(standin, "overview"))
    expect(tab.get_by_text("too many open pages")).to_be_visible()
    standin.refused.clear()
    live(tab)


def test_what_may_not_be_seen_any_more_goes(tab: Page, standin: Standin) -> None:
    tab.goto(address(standin, "overview"))
    live(tab)
    expect(tab.get_by_text("30/20000")).to_be_visible()
    standin.refused = {"/stream": (403, {}), "/demo": (403, {})}
    standin.change()
    expect(tab.get_by_role("alert")).to_contain_text("refused with 403")
    expect(tab.get_by_text("30/20000")).not_to_be_attached()


def test_a_session_ends_whichever_request_is_told_so(tab: Page, standin: Standin) -> None:
    tab.goto(address(standin, "curves"))
    expect(tab.locator("figure.chart").first).to_be_visible()
    standin.refused["/steps"] = (401, {})
    standin.change()
    expect(tab.get_by_role("alert")).to_contain_text("expired")
    expect(tab.get_by_label("Bearer token")).to_be_focused()
    assert tab.locator("figure.chart").count() == 0


def test_judges_are_looked_at_again_while_the_run_does_not_change(tab: Page, standin: Standin) -> None:
    """A run that waits for judges changes nothing, and its page is looked at just then."""
    tab.clock.install()
    standin.pool = {"metadata": {"name": "judges"}, "status": {"readyReplicas": 4, "desiredReplicas": 4}}
    tab.goto(address(standin, "pool"))
    expect(tab.get_by_text("4 of 4")).to_be_visible()
    standin.pool["status"]["readyReplicas"] = 0
    tab.clock.fast_forward(LOOK_MS)
    expect(tab.get_by_text("0 of 4")).to_be_visible()


def test_times_go_on_while_the_run_does_not_change(tab: Page, standin: Standin) -> None:
    """An attempt that waits for its pods the whole night has not begun a minute ago."""
    tab.clock.install(time=NOON)
    attempt = {"stage": "short", "ordinal": 1, "state": "Starting", "started": NOON.isoformat(), "ended": None}
    standin.attempts = [attempt | {"reason": None, "message": "", "step": 0}]
    tab.goto(address(standin, "overview"))
    took = tab.get_by_role("region", name="Attempts").get_by_role("cell").last
    expect(took).to_have_text(re.compile(r"^\d+ (s|min)"))
    before = took.inner_text()
    tab.clock.fast_forward(AGAIN_MS)
    expect(took).not_to_have_text(before)


def test_ages_in_the_list_go_on_while_no_run_changes(tab: Page, standin: Standin) -> None:
    tab.clock.install(time=datetime(2026, 1, 1, 0, 5, tzinfo=UTC))
    tab.goto(standin.url)
    age = tab.locator("time")
    expect(age).to_have_text(re.compile(r"^\d+ min \d+ s$"))
    before = age.inner_text()
    tab.clock.fast_forward(AGAIN_MS)
    expect(age).not_to_have_text(before)


def test_figures_of_a_trainer_that_no_longer_reports_are_said_to_be_old(tab: Page, standin: Standin) -> None:
    tab.goto(address(standin, "overview"))
    expect(tab.get_by_text("30/20000")).to_be_visible()
    expect(tab.get_by_text("The trainer's last report was")).not_to_be_attached()
    standin.reported -= timedelta(hours=4)
    standin.change()
    expect(tab.get_by_text("The trainer's last report was 4 h 0 min ago")).to_be_visible()


def test_what_could_not_be_loaded_is_loaded_again_of_a_run_that_changes_no_more(tab: Page, standin: Standin) -> None:
    standin.refused["/steps"] = (503, {"Retry-After": "1"})
    standin.refused["/evaluations"] = (502, {})
    tab.clock.install()
    tab.goto(address(standin, "curves"))
    expect(tab.get_by_role("alert")).to_contain_text("refused with 503")
    del standin.refused["/steps"]
    tab.clock.fast_forward(1_000)
    expect(tab.locator("figure.chart").first).to_be_visible()
    tab.get_by_role("tab", name="Evaluations").click()
    expect(tab.get_by_role("alert")).to_contain_text("refused with 502")
    del standin.refused["/evaluations"]
    tab.clock.fast_forward(AGAIN_MS)
    expect(tab.get_by_text("Nothing has been evaluated yet.")).to_be_visible()


def test_a_dashboard_that_does_not_answer_or_cannot_be_reached_is_said_so(tab: Page, standin: Standin) -> None:
    tab.add_init_script(
        "const wait = AbortSignal.timeout.bind(AbortSignal);"
        "AbortSignal.timeout = (ms) => wait(window.impatient ? 0 : ms);"
    )
    standin.hold("/steps")
    tab.goto(address(standin, "overview"))
    expect(tab.get_by_text("30/20000")).to_be_visible()
    tab.evaluate("window.impatient = true")  # the page itself has been answered, however slow the machine is
    tab.get_by_role("tab", name="Curves").click()
    expect(tab.get_by_role("alert")).to_contain_text("has not answered in 100 s")
    tab.evaluate("window.impatient = false")
    tab.route("**/evaluations", lambda route: route.abort("connectionrefused"))
    tab.get_by_role("tab", name="Evaluations").click()
    expect(tab.get_by_role("alert")).to_contain_text("cannot be reached: is kubectl still forwarding to it?")


@pytest.mark.parametrize("status", [502, 503])
def test_nobody_is_asked_for_a_token_while_the_api_server_is_away(tab: Page, standin: Standin, status: int) -> None:
    """Whoever has one, or comes through `kubectl deepcoder dashboard`, is let in as soon as it answers."""
    standin.refused["me"] = (status, {"Retry-After": "1"})
    tab.goto(address(standin, "overview"))
    expect(tab.get_by_role("alert")).to_be_visible()
    expect(tab.get_by_label("Bearer token")).to_have_count(0)
    del standin.refused["me"]
    expect(tab.get_by_text("30/20000")).to_be_visible()
