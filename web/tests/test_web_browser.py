"""What the page shows in Chromium, from a server with long runs, runs that cannot be read, and answers that come late.

What needs the real server, the chart's rights and a real bucket is in the operator's tests.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from page_standin import NAMESPACE, Standin, trained
from page_tabs import address, live, until
from playwright.sync_api import Page, Response, expect

from deepcoder_web import views


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


def test_what_a_link_of_the_chain_is_called_stays_in_its_box(tab: Page, standin: Standin) -> None:
    tab.goto(address(standin, "lineage"))
    expect(tab.get_by_text("All 1 links hold")).to_be_visible()
    expect(tab.locator("svg.lineage .base text").last).to_contain_text("Preview")
    assert tab.evaluate(_OVERFLOWING) == []


def test_a_chain_that_is_not_checked_yet_says_so_and_is_asked_for_again(tab: Page, standin: Standin) -> None:
    standin.unfinished = 1
    tab.goto(address(standin, "lineage"))
    expect(tab.get_by_text("Not all is checked yet. The newest 1 links hold")).to_be_visible()
    expect(tab.locator("svg.lineage .base text").first).to_have_text("not checked yet")
    expect(tab.get_by_text("All 1 links hold")).to_be_visible()


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


def test_a_rollout_beyond_the_first_page_is_opened(
    tab: Page, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "SAMPLES_SHOWN", 5)
    tab.goto(address(standin, "samples"))
    before, after = tab.get_by_role("button", name="Previous"), tab.get_by_role("button", name="Next")
    expect(tab.get_by_text("1 to 5 of 13")).to_be_visible()
    expect(before).to_be_disabled()
    after.click()
    expect(tab.get_by_text("6 to 10 of 13")).to_be_visible()
    after.click()
    expect(tab.get_by_text("11 to 13 of 13")).to_be_visible()
    expect(after).to_be_disabled()
    tab.get_by_role("button", name="problem-2 · 3").click()
    expect(tab.get_by_role("region", name="Response")).to_have_text("draw 0 of 2, 3")
    tab.reload()
    expect(tab.get_by_text("11 to 13 of 13")).to_be_visible()
    before.click()
    expect(tab.get_by_text("6 to 10 of 13")).to_be_visible()


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
    # Of two requests on their way at once, the earlier one may arrive last.
    until(lambda: _asked_of(standin) == ("long", "5000"), "the nearest step's rollouts are asked for")
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


def test_gpu_time_of_the_first_attempt_is_shown_while_it_runs(tab: Page, standin: Standin) -> None:
    began = datetime.now(UTC) - timedelta(hours=5)
    pod = {"name": "a", "ordinal": 1, "gpus": 8, "scheduledTime": began, "perGpuHour": "2"}
    standin.usage = {"pods": [pod]}
    tab.goto(address(standin, "overview"))
    facts = tab.locator("dl").first
    expect(facts.locator("div", has_text="Used")).to_have_text(re.compile(r"^Used40(\.\d)? GPU-h$"))
    expect(facts.locator("div", has_text="Cost")).to_have_text(re.compile(r"^Cost80(\.\d)?$"))


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
