"""docs/grpo-plus.md shows the code that is there. Run as a script, it moves the links to where their text is now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepcoder_contracts.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/grpo-plus.md"
LINK = re.compile(r"\[`([^`]+)`\]\(\.\./([^)#]+)#L(\d+)\)")
SCREEN = 20
"""Lines that a link may be off: what it shows is in sight then, and not every change elsewhere must touch the page."""
LINKS = sorted(set(LINK.findall(PAGE.read_text())))


def needle(text: str) -> str:
    """What must be on the line: the text itself, or a setting's definition."""
    if not text.startswith("recipe."):
        return text
    name = re.sub(r"([A-Z])", lambda m: "_" + m[1].lower(), text.removeprefix("recipe."))
    name = next(n for n in Recipe.model_fields if n.replace("_", "") == name.replace("_", ""))
    return f"    {name}: "


def lines_with(text: str, path: str) -> list[int]:
    return [n for n, line in enumerate((ROOT / path).read_text().splitlines(), 1) if needle(text) in line]


@pytest.mark.parametrize(("text", "path", "line"), LINKS, ids=[f"{text} {line}" for text, _, line in LINKS])
def test_a_link_leads_to_what_it_shows(text: str, path: str, line: str) -> None:
    found = lines_with(text, path)
    assert found, "its text is gone: show what is there now"
    assert min(abs(int(line) - n) for n in found) <= SCREEN, f"it is on {found}: run {Path(__file__).name} as a script"


def test_every_metric_is_one_that_is_reported() -> None:
    table = PAGE.read_text().split("## Formula, code, setting, metric")[1].split("\n\n")[1].splitlines()[2:]
    assert len(table) > 15
    source = "\n".join(p.read_text() for p in (ROOT / "trainer_image/src").rglob("*.py"))
    for row in table:
        for metric in re.findall(r"`([a-z_0-9]+)`", row.rsplit("|", 2)[1]):
            phase = metric.removesuffix("_seconds")
            assert f'"{metric}"' in source or f'lap("{phase}")' in source, metric


def test_every_switch_of_the_loss_is_on_the_page() -> None:
    page = PAGE.read_text()
    for name in ("advantage", "overlong", "loss", "oldLogprobs", "tisCap", "importance", "clipLow", "clipHigh"):
        assert f"`recipe.{name}`" in page, name
    for name in ("entropyCoefficient", "klCoefficient", "temperature", "optimizerSteps", "gradClip", "refill"):
        assert f"`recipe.{name}`" in page, name


def relink(page: str) -> str:
    """The page with each link at the first line that has its text."""
    return LINK.sub(lambda m: f"[`{m[1]}`](../{m[2]}#L{(lines_with(m[1], m[2]) or ['?'])[0]})", page)


if __name__ == "__main__":
    PAGE.write_text(relink(PAGE.read_text()))
