"""The page's scripts in Chromium, before a server that holds back, refuses, ends streams and has long runs.

What needs the real server, the chart's rights and a real bucket is in the operator's tests.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from page_standin import NAMESPACE, TOKEN, Standin, trained
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect

PATIENCE_MS = 60_000
"""For what a page asks in the end, as for what it shows: a busy machine is slow."""

LOOK_MS = 10_000
"""After which a page without a stream looks anew, and one that shows judges."""

AGAIN_MS = 30_000
"""After which a page loads again what has failed, and writes times anew. Less than the silence that ends a stream."""

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)

# A headless browser takes every tab as seen: here each can be told that it is not.
TAB = f"""
try {{ sessionStorage.setItem("deepcoder-token", "{TOKEN}"); }} catch {{}}
let hidden = false;
Object.defineProperty(document, "hidden", {{ get: () => hidden }});
window.hide = (value) => {{ hidden = value; document.dispatchEvent(new Event("visibilitychange")); }};
"""


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


def address(standin: Standin, tab: str, name: str = "demo") -> str:
    return f"{standin.url}/#/runs/{NAMESPACE}/{name}/{tab}"


def live(page: Page) -> None:
    expect(page.get_by_text("live", exact=True)).to_be_visible()


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_MS / 1000
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


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


def test_ten_thousand_steps_are_drawn_and_grow_by_what_is_new(tab: Page, standin: Standin) -> None:
    standin.steps["demo"] = trained(0, 10_000)
    answers: list[Response] = []
    tab.on("response", lambda response: answers.append(response) if "/steps" in response.url else None)
    tab.goto(address(standin, "curves"))
    live(tab)
    expect(tab.get_by_text(re.compile("^Reward, 10000 points to step 10,000"))).to_be_attached()
    charts = tab.locator("figure.chart")
    assert charts.count() == 11
    for at in range(charts.count()):
        expect(charts.nth(at).locator("canvas")).to_be_attached()
        assert charts.nth(at).locator("canvas").evaluate(_INKED), f"chart {at} is blank"
    first = len(answers[0].body())
    standin.steps["demo"] += trained(10_000, 1)
    standin.change()
    expect(tab.get_by_text(re.compile("^Reward, 10001 points to step 10,001"))).to_be_attached()
    grown = answers[-1].json()
    assert (grown["reset"], grown["step"]) == (False, [10_001])
    assert len(answers[-1].body()) * 100 < first


_INKED = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value) => value !== 0);
}"""


def test_an_answer_that_is_slower_than_the_run_changes_is_shown(tab: Page, standin: Standin) -> None:
    standin.hold("/lineage")
    tab.goto(address(standin, "lineage"))
    live(tab)
    for number in range(31, 36):
        standin.digest = f"sha256:{number:064x}"
        standin.problem = f"change {number}"
        standin.change()
        expect(tab.get_by_text(standin.problem)).to_be_visible()  # with it the page has the run's new checkpoint
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


def test_what_a_link_of_the_chain_is_called_stays_in_its_box(tab: Page, standin: Standin) -> None:
    tab.goto(address(standin, "lineage"))
    expect(tab.get_by_text("All 1 links hold")).to_be_visible()
    expect(tab.locator("svg.lineage .base text").last).to_contain_text("Preview")
    assert tab.evaluate(_OVERFLOWING) == []


_OVERFLOWING = """() => [...document.querySelectorAll("svg.lineage g")].flatMap((group) => {
  const box = group.querySelector("rect").getBBox();
  const fits = (text) => text.getBBox().x + text.getBBox().width <= box.x + box.width;
  return [...group.querySelectorAll("text")].filter((text) => !fits(text)).map((text) => text.textContent);
})"""


def test_curves_that_come_late_are_not_drawn_under_another_name(tab: Page, standin: Standin) -> None:
    standin.steps = {"demo": trained(0, 10), "second": trained(0, 20), "third": trained(0, 30)}
    here = f"{NAMESPACE}/demo/{NAMESPACE}"
    standin.hold("second/steps")
    tab.goto(f"{standin.url}/#/compare/{here}/second")
    until(lambda: standin.count("second/steps") == 1, "the second run's steps are asked for")
    tab.goto(f"{standin.url}/#/compare/{here}/third")
    standin.release("second/steps")
    expect(tab.get_by_role("heading", name="demo and third")).to_be_visible()
    expect(tab.get_by_text(re.compile("^Reward: mean reward, 30 points"))).to_be_attached()
    assert standin.count("third/steps") == 1


def test_a_curve_that_ends_before_the_other_says_where(tab: Page, standin: Standin) -> None:
    standin.steps = {"demo": trained(0, 300), "second": trained(0, 120)}
    tab.goto(f"{standin.url}/#/compare/{NAMESPACE}/demo/{NAMESPACE}/second")
    chart = tab.locator("figure.chart").first
    expect(chart.locator(".legend")).to_have_text(
        re.compile(r"^\s*step 300\s*demo 0\.\d+\s*second 0\.\d+ at step 120\s*$")
    )
    expect(chart.get_by_text(re.compile(r"second: now 0\.\d+ at step 120, between"))).to_be_attached()
    expect(tab).to_have_title("demo and second · DeepCoder")


def test_what_is_not_there_yet_is_said_to_come(tab: Page, standin: Standin) -> None:
    for place in ("evaluations", "pool", "samples/steps", "steps", "attempts"):
        standin.hold(f"/{place}")
        tab.goto(
            address(standin, {"samples/steps": "samples", "steps": "curves", "attempts": "overview"}.get(place, place))
        )
        expect(tab.get_by_text("Loading…")).to_be_visible()
        standin.release(f"/{place}")
        expect(tab.get_by_text("Loading…")).not_to_be_attached()
    standin.refused["/demo"] = (502, {})
    tab.goto(address(standin, "overview", "other"))
    # Otherwise the page may notice both changes of its address at once, and then there is none.
    expect(tab.get_by_role("heading", level=1)).to_contain_text("other")
    tab.goto(address(standin, "overview"))
    expect(tab.get_by_role("alert")).to_contain_text("refused with 502")
    expect(tab.get_by_text("Loading…")).not_to_be_attached()


def test_hundreds_of_runs_are_counted_and_filtered(tab: Page, standin: Standin) -> None:
    row = {
        "namespace": "a-team-with-a-long-name",
        "phase": "Running",
        "stage": "16k",
        "contextTokens": 16384,
        "step": 1,
    }
    row |= {
        "display": "1/9",
        "reward": "0.5",
        "gpus": 8,
        "attempt": 1,
        "created": "2026-01-01T00:00:00Z",
        "message": None,
    }
    standin.rows = [row | {"name": f"ablation-{n:03d}{'-x' * 26}", "uid": f"{n}"} for n in range(300)]
    standin.rows[0]["message"] = "raise spec.recipe.optimization.microBatchTokensOfEachLearner.perDeviceAndStep"
    tab.goto(standin.url)
    told = tab.locator("output")
    expect(told).to_have_text("301 runs")
    tab.get_by_label("Filter").fill("ablation-11")
    expect(told).to_have_text("10 of 301 runs")
    tab.get_by_label("Filter").fill("")
    expect(tab.get_by_text("perDeviceAndStep")).to_be_visible()
    for width, fits in ((1300, "main .wide"), (360, "html")):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.locator(fits).evaluate("(e) => e.scrollWidth <= e.clientWidth"), f"{width} wide"


def test_a_link_to_another_page_takes_the_focus_along_and_a_tab_keeps_it(tab: Page, standin: Standin) -> None:
    tab.goto(standin.url)
    tab.get_by_role("link", name="demo", exact=True).press("Enter")
    expect(tab.get_by_role("main")).to_be_focused()
    tab.get_by_role("tab", name="Overview").press("ArrowRight")
    expect(tab.get_by_role("tab", name="Curves")).to_be_focused()


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


def test_a_run_that_cannot_be_read_is_listed_with_what_is_known(tab: Page, standin: Standin) -> None:
    unknown: dict[str, Any] = dict.fromkeys(("stage", "contextTokens", "display", "reward", "created"))
    about = {
        "namespace": NAMESPACE,
        "name": "newer",
        "uid": "n",
        "phase": "Unknown",
        "message": "spec.future is not known",
    }
    standin.rows = [unknown | about | {"step": 0, "gpus": 0, "attempt": 0, "unreadable": True}]
    standin.refused["/newer"] = (422, {})
    tab.goto(standin.url)
    row = tab.get_by_role("row", name=re.compile("newer"))
    expect(row).to_contain_text("spec.future is not known")
    assert row.get_by_role("cell").all_inner_texts()[2:] == ["–"] * 7
    expect(tab.get_by_role("row", name=re.compile("demo"))).to_be_visible()
    row.get_by_role("link").click()
    expect(tab.get_by_role("alert")).to_contain_text("refused with 422")


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


def test_a_dropped_draw_is_read_where_it_is_chosen(tab: Page, standin: Standin) -> None:
    tab.goto(address(standin, "samples"))
    tab.get_by_role("row", name=re.compile("dropped")).get_by_role("button").click()
    expect(tab.get_by_role("region", name="Response")).to_have_text("draw 0 of 0, 0")
    assert tab.locator("tr.chosen").count() == 1
    tab.get_by_role("row", name=re.compile("^problem-0 · 0 1 ")).get_by_role("button").click()
    expect(tab.get_by_role("region", name="Response")).to_have_text("draw 1 of 0, 0")
    tab.reload()
    expect(tab.get_by_role("region", name="Response")).to_have_text("draw 1 of 0, 0")
    assert tab.locator("tr.chosen").count() == 1


def test_one_of_thousands_of_steps_is_named_by_its_number(tab: Page, standin: Standin) -> None:
    standin.sample_steps = [{"stage": s, "step": n} for s in ("short", "long") for n in range(1, 5001)]
    tab.goto(address(standin, "samples"))
    field = tab.get_by_role("spinbutton", name="Step")
    expect(field).to_have_value("5000")
    assert tab.locator("option").count() < 20
    field.fill("1234")
    field.press("Enter")
    until(lambda: _asked_of(standin) == ("long", "1234"), "the step's rollouts are asked for")
    field.fill("99999")
    field.press("Enter")
    expect(field).to_have_value("5000")
    tab.get_by_label("Stage").select_option("short")
    until(lambda: _asked_of(standin) == ("short", "5000"), "the stage's last rollouts are asked for")


def test_nodes_on_which_judges_do_not_start_are_shown_with_their_last_words(tab: Page, standin: Standin) -> None:
    node = {"name": "bad", "since": "2026-05-01T12:00:00Z", "message": "exit code 64: <b>no Landlock</b>"}
    standin.pool = {"metadata": {"name": "judges"}, "status": {"readyReplicas": 1, "avoidedNodes": [node]}}
    tab.goto(address(standin, "pool"))
    line = tab.get_by_text("No judge is started on node bad, where one failed to start")
    expect(line).to_contain_text(node["message"])


def _asked_of(standin: Standin) -> tuple[str, str]:
    last = next(a for a in reversed(list(standin.asked)) if a.partition("?")[0].endswith("/samples"))
    query: dict[str, Any] = dict(part.split("=") for part in last.partition("?")[2].split("&"))
    return query["stage"], query["step"]


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


def test_gpu_time_of_the_first_attempt_is_shown_while_it_runs(tab: Page, standin: Standin) -> None:
    began = datetime.now(UTC) - timedelta(hours=5)
    pod = {"name": "a", "ordinal": 1, "gpus": 8, "scheduledTime": began, "perGpuHour": "2"}
    standin.usage = {"pods": [pod]}
    tab.goto(address(standin, "overview"))
    facts = tab.locator("dl").first
    expect(facts.locator("div", has_text="Used")).to_have_text(re.compile(r"^Used40(\.\d)? GPU-h$"))
    expect(facts.locator("div", has_text="Cost")).to_have_text(re.compile(r"^Cost80(\.\d)?$"))


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


def test_an_evaluation_that_cannot_be_read_is_named(tab: Page, standin: Standin) -> None:
    standin.damaged = ["s3://b/eval/1 cannot be read: it was changed"]
    tab.goto(address(standin, "evaluations"))
    expect(tab.get_by_text("An evaluation is left out: s3://b/eval/1 cannot be read: it was changed")).to_be_visible()


def test_an_address_that_was_cut_off_leads_to_the_list(tab: Page, standin: Standin) -> None:
    for cut in ("#/runs/%E0%A4%A", "#/runs/team/%", "#/runs/team", "#/compare/team/demo/team/%E0"):
        tab.goto("about:blank")
        tab.goto(f"{standin.url}/{cut}")
        expect(tab.get_by_role("heading", name="Runs")).to_be_visible()


def test_curves_that_are_compared_say_that_they_are_smoothed(tab: Page, standin: Standin) -> None:
    standin.steps = {"demo": trained(0, 30), "second": trained(0, 30)}
    tab.goto(f"{standin.url}/#/compare/{NAMESPACE}/demo/{NAMESPACE}/second")
    expect(tab.get_by_text("Each point is the mean of 5 steps.")).to_be_visible()


@pytest.mark.parametrize("status", [502, 503])
def test_nobody_is_asked_for_a_token_while_the_api_server_is_away(tab: Page, standin: Standin, status: int) -> None:
    """Whoever has one, or comes through `kubectl deepcoder dashboard`, is let in as soon as it answers."""
    standin.refused["me"] = (status, {"Retry-After": "1"})
    tab.goto(address(standin, "overview"))
    expect(tab.get_by_role("alert")).to_be_visible()
    expect(tab.get_by_label("Bearer token")).to_have_count(0)
    del standin.refused["me"]
    expect(tab.get_by_text("30/20000")).to_be_visible()
