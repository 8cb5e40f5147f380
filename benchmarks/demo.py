"""Does the demo learn? Runs `examples/local-demo.yaml` for several seeds, from warm start to evaluation.

    make bench-demo                            three seeds, about eight minutes each on two idle cores
    .venv/bin/python benchmarks/demo.py --seeds 0 --keep /tmp/bench --page docs/results/demo-2025-11-25.md

Nothing is written but what is asked for (`--keep`, `--page`), and a run that takes too long is ended with all that it
started. What `--keep` kept is used again only where the same code made it, and keeps the date it was measured. The
last line of the output is one JSON object. Exit status 1 says that a criterion was not met:

- reward in the last fifth of the steps at least 0.15 above the first fifth,
- the short stage truncates, and the long one lifts what it truncated,
- held-back problems: from the start to the long stage the paired 95 % interval is above 0, for each seed,
- and from the short to the long stage, over all seeds together.

Intervals are over problems: they say how far the same trained models would differ on other problems of this kind, not
how far another seed's training would. For that, look at the seeds side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from whole_runs import Seconds, work_folder

from deepcoder_trainer.checkpoint.code import code_digest
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.evaluation.stats import Interval, bootstrap, problem_means
from deepcoder_trainer.report.figures import RunFigures, run_figures
from deepcoder_trainer.report.history import StoredEvaluation, read_history, target_scores
from deepcoder_trainer.report.plots import draw

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples/local-demo.yaml"
LEAST_GAIN = 0.15
LEAST_TRUNCATED = 0.15
MAKE_SECONDS, RUN_SECONDS = 1800, 7200


@dataclass(frozen=True)
class SeedResult:
    seed: int
    figures: RunFigures
    evaluation: StoredEvaluation
    dataset: str
    by_problem: dict[str, np.ndarray[Any, Any]]
    """Target to [problems] share of right answers."""
    make_seconds: float
    run_seconds: float
    run: Path

    def difference(self, before: str, after: str) -> Interval:
        return bootstrap(self.by_problem[after] - self.by_problem[before])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="keep data, checkpoints and logs here; what is there is used again")
    parser.add_argument("--page", type=Path, help="write the figures as a page, and the curves beside it")
    options = parser.parse_args()
    with work_folder(options.keep, "deepcoder-bench-demo-") as work:
        results = [_run_seed(seed, work) for seed in options.seeds]
        summary = _summary(results)
        print(_table(results, summary))
        if options.page:
            _write_page(options.page, results, summary)
    print(json.dumps(summary, sort_keys=True))
    return 0 if not summary["unmet"] else 1


def _run_seed(seed: int, work: Path) -> SeedResult:
    folder = work / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    data, run = folder / "data", folder / "run"
    command = [sys.executable, "-m", "deepcoder_trainer"]
    _say(f"seed {seed}: making problems and model")
    seconds = Seconds(folder / "seconds.json")
    make = [*command, "make-demo", "--output", str(data), "--seed", str(seed)]
    seconds.add("make", make, folder / "make.log", MAKE_SECONDS)
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(_config(seed, data, run), sort_keys=False))
    _say(f"seed {seed}: training and evaluating, log in {folder / 'run.log'}")
    seconds.add("run", [*command, "run", "--config", str(config)], folder / "run.log", RUN_SECONDS)
    store = open_storage(f"file://{run}")
    history = read_history(store)
    figures, evaluation = run_figures(history.steps), history.evaluations[-1]
    assert figures is not None, "the run trained"
    if evaluation.manifest.code_digest != code_digest():
        raise SystemExit(
            f"{run} was evaluated on {evaluation.manifest.created_at:%Y-%m-%d} by other code of the trainer: its "
            f"figures are not today's; remove {folder}, or keep runs somewhere else"
        )
    targets = list(evaluation.results.in_order)
    dataset = next(iter(evaluation.results.targets[targets[0]]))
    by_problem = {t: problem_means(target_scores(store, evaluation, t, dataset).solved) for t in targets}
    return SeedResult(seed, figures, evaluation, dataset, by_problem, seconds.spent["make"], seconds.spent["run"], run)


def _config(seed: int, data: Path, run: Path) -> dict[str, Any]:
    """The example, with this seed's folders."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["model"]["uri"] = str(data / "model")
    config["dataset"]["uri"] = str(data / "train.jsonl")
    config["recipe"]["seed"] = seed
    config["storage"]["uri"] = f"file://{run}"
    for stage in config["stages"]:
        for dataset in stage.get("evaluate", {}).get("datasets", []):
            dataset["uri"] = str(data / "heldout.jsonl")
    return config


def _summary(results: list[SeedResult]) -> dict[str, Any]:
    base, short, long = list(results[0].by_problem)
    pooled = bootstrap(np.concatenate([r.by_problem[long] - r.by_problem[short] for r in results]))
    unmet = []
    seeds: dict[str, Any] = {}
    for r in results:
        first, second = r.figures.stages[:2]
        gain = r.difference(base, long)
        checks = {
            f"reward gained less than {LEAST_GAIN}": r.figures.reward_gain >= LEAST_GAIN,
            "the short stage did not truncate": first.truncated_first >= LEAST_TRUNCATED,
            "the long stage did not lift truncation": second.truncated_first < first.truncated_last / 2,
            "held-back problems did not improve": gain.low > 0,
        }
        unmet += [f"seed {r.seed}: {name}" for name, met in checks.items() if not met]
        seeds[str(r.seed)] = {
            "reward_first_fifth": round(r.figures.reward_first_fifth, 4),
            "reward_last_fifth": round(r.figures.reward_last_fifth, 4),
            "truncated_short_first": round(first.truncated_first, 4),
            "truncated_short_last": round(first.truncated_last, 4),
            "truncated_long_first": round(second.truncated_first, 4),
            "pass_at_1": {t: round(float(np.nanmean(v)), 4) for t, v in r.by_problem.items()},
            "start_to_long": _rounded(gain),
            "short_to_long": _rounded(r.difference(short, long)),
            "seconds_per_step": round(first.seconds_per_step, 2),
            "make_seconds": round(r.make_seconds, 1),
            "run_seconds": round(r.run_seconds, 1),
        }
    if pooled.low <= 0:
        unmet.append("over all seeds, the long stage did not improve on the short one")
    measured = max(r.evaluation.manifest.created_at for r in results).isoformat(timespec="seconds")
    return {
        "benchmark": "demo",
        "measured": measured,
        "seeds": seeds,
        "short_to_long_pooled": _rounded(pooled),
        "unmet": unmet,
    }


def _rounded(interval: Interval) -> list[float]:
    return [round(interval.mean, 4), round(interval.low, 4), round(interval.high, 4)]


def _table(results: list[SeedResult], summary: dict[str, Any]) -> str:
    r = results[0]
    settings = r.evaluation.results.inputs
    problems = r.evaluation.results.in_order[next(iter(r.by_problem))][r.dataset].problems
    lines = [
        "| seed | reward, first → last fifth | truncated: short start, short end, long start | "
        f"pass@1 ({problems} problems × {settings['samples_per_problem']}, {settings['context_tokens']} tokens): "
        "start, short, long | start → long | s a step | s, make and run |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, s in summary["seeds"].items():
        p = ", ".join(f"{v:.3f}" for v in s["pass_at_1"].values())
        mean, low, high = s["start_to_long"]
        lines.append(
            f"| {seed} | {s['reward_first_fifth']:.3f} → {s['reward_last_fifth']:.3f} "
            f"| {s['truncated_short_first']:.2f}, {s['truncated_short_last']:.2f}, {s['truncated_long_first']:.2f} "
            f"| {p} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) | {s['seconds_per_step']:.1f} "
            f"| {s['make_seconds']:.0f} + {s['run_seconds']:.0f} |"
        )
    mean, low, high = summary["short_to_long_pooled"]
    lines += [
        "",
        f"Short → long over all seeds: {mean:+.3f} ({low:+.3f} to {high:+.3f}), paired by problem. All intervals are "
        "over problems, not over training runs.",
    ]
    lines += [f"NOT MET: {text}" for text in summary["unmet"]] or ["All criteria are met."]
    return "\n".join(lines)


def _write_page(page: Path, results: list[SeedResult], summary: dict[str, Any]) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for r in results:
        picture = page.with_name(f"{page.stem}-seed-{r.seed}.png")
        draw(read_history(open_storage(f"file://{r.run}")), picture, f"demo, seed {r.seed}")
        pictures.append(f"![Curves of seed {r.seed}]({picture.name})")
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores, Python {platform.python_version()}"
    measured = max(r.evaluation.manifest.created_at for r in results).date().isoformat()
    text = [
        f"# The demo's learning, {measured}",
        "",
        f"`make bench-demo` on {machine}.",
        "",
        _table(results, summary),
        "",
    ]
    page.write_text("\n".join([*text, *pictures]) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
