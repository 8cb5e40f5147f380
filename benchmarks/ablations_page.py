"""The page of the ablations: the table, a sentence for each claim, and one picture for each arm beside the base.

Text comes from the same values as the JSON line; nothing is written by hand into a page. matplotlib is imported when a
picture is drawn.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations_rule import ARMS, BASE, CLAIMS, HELD_BACK, Claim, Difference, Run, difference, figure, judged

from deepcoder_trainer.report.plots import smoothed

COLUMNS = (
    ("reward_mean", "reward"),
    (HELD_BACK, "pass@1, held back"),
    ("entropy", "entropy"),
    ("response_tokens_mean", "response tokens"),
    ("truncated_ratio", "truncated"),
    ("clipped", "clipped tokens"),
)
PANELS = (
    ("reward_mean", "Reward (mean of a step)"),
    ("entropy", "Entropy (nats a token)"),
    ("truncated_ratio", "Truncated responses (share)"),
    ("clipped", "Tokens stopped by the clip (share)"),
)
_COLOURS = ("#2563eb", "#d97706")


def clipped(run: Run) -> Run:
    """The run with the share of tokens that either side of the clip stopped, as `clipped`."""
    steps = [{**s, "clipped": s.get("clipped_low_ratio", 0.0) + s.get("clipped_high_ratio", 0.0)} for s in run.steps]
    return Run(run.arm, run.seed, steps, run.seconds)


def table(runs: Sequence[Run]) -> str:
    """One line an arm: means over seeds, and the least and the largest."""
    head = "| arm | seeds | " + " | ".join(name for _, name in COLUMNS) + " | s a run |"
    lines = [head, "|---" * (len(COLUMNS) + 3) + "|"]
    for arm in ARMS:
        own = [clipped(r) for r in runs if r.arm == arm.name]
        if not own:
            continue
        cells = [_range([v for r in own if (v := figure(r, metric)) is not None]) for metric, _ in COLUMNS]
        seconds = f"{statistics.median(r.seconds for r in own):.0f}"
        lines.append(f"| {arm.title} | {len(own)} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def describe(runs: Sequence[Run]) -> str:
    """A sentence for each claim."""
    return "\n".join(f"- {_sentence(runs, claim)}" for claim in CLAIMS)


def summarize(runs: Sequence[Run], measured: str, missing: Sequence[str]) -> dict[str, Any]:
    """The JSON line."""
    claims: dict[str, Any] = {}
    for claim in CLAIMS:
        verdict, parts = judged(runs, claim)
        claims[claim.arm] = {
            "verdict": verdict,
            "parts": {
                each.metric: {
                    "claimed": "more" if each.sign > 0 else "less",
                    "base": round(d.base, 5),
                    "arm": round(d.arm, 5),
                    "by_seed": {str(seed): round(v, 5) for seed, v in d.by_seed.items()},
                    "difference": round(d.mean, 5),
                    "half_width": round(d.half_width, 5) if len(d.by_seed) > 1 else None,
                    "verdict": word,
                }
                for each, d, word in parts
            },
        }
    learned = [gained(r) for r in runs if r.arm == BASE]
    return {
        "benchmark": "ablations",
        "measured": measured,
        "claims": claims,
        "base_reward_gain": round(statistics.fmean(learned), 4) if learned else None,
        "runs": len(runs),
        "not_run": list(missing),
        "seconds": round(sum(r.seconds for r in runs), 1),
    }


def gained(run: Run) -> float:
    """Reward of the last fifth of a run's steps above the first fifth's: whether it learned at all."""
    first = run.steps[: max(1, len(run.steps) // 5)]
    return (figure(run, "reward_mean") or 0.0) - statistics.fmean(s["reward_mean"] for s in first)


def write_page(page: Path, runs: Sequence[Run], summary: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """The page and its pictures."""
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for arm in ARMS[1:]:
        if any(r.arm == arm.name for r in runs):
            picture = page.with_name(f"{page.stem}-{arm.name}.png")
            draw(runs, arm.name, arm.title, picture)
            change = ", ".join(f"{k}: {v}" for k, v in arm.settings.items())
            pictures += [f"## {arm.title} (`{change}`)", "", f"![{arm.title} beside the base]({picture.name})", ""]
    seeds = sorted({r.seed for r in runs})
    missing = "; ".join(summary["not_run"])
    gain = summary["base_reward_gain"]
    text = [
        f"# What each part of GRPO+ does, {summary['measured'][:10]}",
        "",
        f"`make bench-ablations` on {platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores, Python "
        f"{platform.python_version()}. Trainer's code {settings['code'][:19]}. Real samplers, learners and judge; "
        "other work may have run on the machine, so seconds are upper bounds.",
        "",
        f"The demo's task and model of 0.66M parameters, {settings['batch']} responses a step, {settings['steps']} "
        f"steps, learning rate {settings['rate']:g}, responses cut at {settings['context']} tokens; pass@1 is of 256 "
        f"held-back problems × 2 after the last step, at {settings['room']} tokens. Each arm is the base with one "
        "recipe field changed. Each seed has a starting model and problems of its own, which all arms share: "
        f"{len(seeds)} seeds, {len(runs)} runs. Not run: {missing or 'nothing'}.",
        "",
        *([] if gain is None else [f"The base's reward rose by {gain:.2f} from the first fifth of its steps.", ""]),
        "Means over the last fifth of the steps and over seeds, with the least and the largest seed:",
        "",
        table(runs),
        "",
        "## What the paper claims, and what is seen at this scale",
        "",
        describe(runs),
        "",
        "The rule was fixed beforehand: *seen* means that the 95 % interval (Student's t) of the differences between "
        "arm and base, seed by seed, lies wholly on the side that the claim names; *opposite seen*, on the other; *not "
        "seen*, that it holds 0. Not seen is not refuted: a difference smaller than the interval would not show, and a "
        "model of this size, tasks of a few lines and some tens of steps are far from where the claims were "
        "made. One interval in twenty misleads by chance.",
        "",
        "In the pictures lines are means over seeds (moving mean of 5 steps), bands go from the least to the largest "
        "seed.",
        "",
    ]
    page.write_text("\n".join([*text, *pictures]).rstrip() + "\n")


def draw(runs: Sequence[Run], arm: str, title: str, path: Path) -> None:
    """Four panels: the arm's curves over the base's, with a band over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e5e7eb",
    }
    seeds = {r.seed for r in runs if r.arm == arm}
    runs = [r for r in runs if r.seed in seeds]
    with mpl.rc_context(style):
        sheet, axes = plt.subplots(2, 2, figsize=(9.5, 6.4), layout="constrained")
        for axis, (metric, label) in zip(axes.flat, PANELS, strict=True):
            for name, text, colour in ((BASE, ARMS[0].title, _COLOURS[0]), (arm, title, _COLOURS[1])):
                _curve(axis, [clipped(r) for r in runs if r.arm == name], metric, text, colour)
            axis.set_title(label, loc="left", fontsize=11)
            axis.set_xlabel("step")
            axis.margins(x=0)
            axis.set_ylim(bottom=0)
        lines, names = axes.flat[0].get_legend_handles_labels()
        sheet.legend(lines, names, loc="upper right", ncols=2, frameon=False)
        sheet.suptitle(f"{title} against {ARMS[0].title} ({len(seeds)} seeds)", x=0.01, ha="left", fontweight="bold")
        sheet.savefig(path, dpi=100)
        plt.close(sheet)


def _curve(axis: Any, runs: Sequence[Run], metric: str, label: str, colour: str) -> None:
    curves = [smoothed([s.get(metric, float("nan")) for s in r.steps], []) for r in runs]
    if not curves:
        return
    by_step = list(zip(*curves, strict=False))
    at = range(1, len(by_step) + 1)
    axis.fill_between(at, [min(v) for v in by_step], [max(v) for v in by_step], color=colour, alpha=0.18, linewidth=0)
    axis.plot(at, [statistics.fmean(v) for v in by_step], color=colour, linewidth=2, label=label)


def _sentence(runs: Sequence[Run], claim: Claim) -> str:
    verdict, parts = judged(runs, claim)
    told = "; ".join(_part(each.name, each.sign, d, word) for each, d, word in parts)
    beside = "".join(f" {_aside(runs, claim.arm, metric, name)}" for metric, name in claim.beside)
    beyond = f" {claim.beyond.format(steps=max(len(r.steps) for r in runs))}" if claim.beyond and runs else ""
    text = f"**{verdict.capitalize()}**: {claim.text} With {_title(claim.arm)}: {told or 'no run'}.{beside}"
    return text.rstrip() + beyond


def _part(name: str, sign: int, d: Difference, verdict: str) -> str:
    claimed = "more" if sign > 0 else "less"
    spread = "one seed has no spread" if len(d.by_seed) < 2 else f"± {_number(d.half_width)}"
    return (
        f"{name} {_number(d.arm)} against {_number(d.base)}, {_number(d.mean, plus=True)} ({spread}; claimed: "
        f"{claimed}), {verdict}"
    )


def _aside(runs: Sequence[Run], arm: str, metric: str, name: str) -> str:
    both = difference(runs, arm, metric)
    upper = name[0].upper() + name[1:]
    if both is not None:
        return f"{upper}: {_number(both.arm)}, in the base {_number(both.base)}."
    own = [v for r in runs if r.arm == arm and (v := figure(r, metric)) is not None]
    return f"{upper}: {_number(statistics.fmean(own))}." if own else ""


def _title(arm: str) -> str:
    return next(a.title for a in ARMS if a.name == arm)


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = _number(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float, plus: bool = False) -> str:
    """Enough digits to tell small shares apart."""
    digits = 1 if abs(value) >= 10 else 3 if abs(value) >= 0.01 or value == 0 else 5
    return f"{value:+.{digits}f}" if plus else f"{value:.{digits}f}"
