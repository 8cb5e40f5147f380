"""What does each part of GRPO+ do? The demo's task, trained with one part changed at a time, over several seeds.

    make bench-ablations                       five arms × three seeds, 15 runs of about two minutes on two idle cores
    .venv/bin/python benchmarks/ablations.py --keep out/ablations --page docs/results/ablations-2026-11-28.md
    .venv/bin/python benchmarks/ablations.py --keep out/ablations --drawn-only --page PAGE

Each run is `deepcoder-trainer run` on the first stage of `examples/local-demo.yaml`, with real samplers and a real
judge; arms differ from the base in recipe fields alone (`ablations_rule.py` has them, the claims, and the rule by which
a claim is seen or not). Responses are cut at 24 tokens, which truncates a third of them; after the last step held-back
problems are answered with four times that room.

With `--keep`, runs that are finished are not run again, and one that was killed goes on from its newest checkpoint;
runs of other code or settings in the same folder are refused, since arms are compared. Seeds are run one after another,
all arms of each, so that what there is at any time can be compared. `--drawn-only` makes the page from what is
finished, and says what is not. The last line is one JSON object. No claim has to be seen for exit status 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from ablations_page import describe, summarize, table, write_page
from ablations_rule import ARMS, MOST_SEEDS, Arm, Run
from whole_runs import Seconds, work_folder

from deepcoder_trainer.checkpoint.code import code_digest
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.report.history import read_history

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples/local-demo.yaml"
STEPS = 30
ROOM = 4
"""How many times the trained length evaluations may use."""
MAKE_SECONDS, RUN_SECONDS = 1800, 3600


def main() -> int:
    """Run what is not finished, print the table, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=[a.name for a in ARMS], default=[a.name for a in ARMS])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each run (default {STEPS})")
    parser.add_argument("--keep", type=Path, help="keep data, checkpoints and logs here, and go on from what is there")
    parser.add_argument("--drawn-only", action="store_true", help="run nothing: the page of what --keep holds")
    parser.add_argument("--page", type=Path, help="write a dated page here, and the curves beside it")
    options = parser.parse_args()
    if len(set(options.seeds)) > MOST_SEEDS:
        parser.error(f"--seeds: {len(set(options.seeds))} seeds, at most {MOST_SEEDS} can be compared")
    if options.drawn_only and options.keep is None:
        parser.error("--drawn-only needs --keep FOLDER, where finished runs are")
    wanted = [(arm, seed) for seed in dict.fromkeys(options.seeds) for arm in ARMS if arm.name in options.arms]
    with work_folder(options.keep, "deepcoder-bench-ablations-") as work:
        documents = []
        for arm, seed in wanted:
            document = finished(arm, seed, options.steps, work, any_code=options.drawn_only)
            if document is None and not options.drawn_only:
                document = run_arm(arm, seed, options.steps, work)
            if document is not None:
                documents.append(document)
        if len({d["plan"]["code"] for d in documents}) > 1:
            raise SystemExit(f"{work} holds runs of different code of the trainer, which cannot be compared")
        runs = [Run(d["arm"], d["seed"], d["steps"], d["seconds"]) for d in documents]
        missing = [f"{a.name}, seed {s}" for a, s in wanted if not any(r.arm == a.name and r.seed == s for r in runs)]
        measured = max((d["measured"] for d in documents), default=datetime.now(UTC).isoformat(timespec="seconds"))
        summary = summarize(runs, measured, missing)
        print(table(runs))
        print(describe(runs))
        if options.page:
            settings = {**base_settings(options.steps), "code": documents[0]["plan"]["code"] if documents else "none"}
            write_page(options.page, runs, summary, settings)
    print(json.dumps(summary, sort_keys=True))
    return 0


def arm_config(arm: Arm, seed: int, steps: int, data: Path, run: Path) -> dict[str, Any]:
    """The example's first stage, with this arm's recipe and this seed's folders."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["model"]["uri"] = str(data / "model")
    config["dataset"]["uri"] = str(data / "train.jsonl")
    config["recipe"] |= {"seed": seed, **arm.settings}
    config["storage"] = {"uri": f"file://{run}", "everySteps": 10, "keepLast": 1}
    context = config["stages"][0]["contextTokens"]
    config["stages"] = [
        {
            "name": "train",
            "type": "Train",
            "contextTokens": context,
            "maxSteps": steps,
            "evaluate": {
                "datasets": [{"name": "heldout", "uri": str(data / "heldout.jsonl")}],
                "contextTokens": ROOM * context,
                "samplesPerProblem": 2,
            },
        }
    ]
    return config


def base_settings(steps: int) -> dict[str, Any]:
    """What all runs have in common, for the page."""
    config = arm_config(ARMS[0], 0, steps, Path("data"), Path("run"))
    stage, recipe = config["stages"][0], config["recipe"]
    return {
        "batch": f"{recipe['promptsPerStep']} × {recipe['groupSize']}",
        "context": stage["contextTokens"],
        "room": stage["evaluate"]["contextTokens"],
        "steps": steps,
        "rate": recipe["learningRate"],
    }


def plan_of(arm: Arm, seed: int, steps: int) -> dict[str, Any]:
    """What decides a run's figures; paths do not."""
    return {"code": code_digest(), "config": arm_config(arm, seed, steps, Path("data"), Path("run"))}


def finished(arm: Arm, seed: int, steps: int, work: Path, *, any_code: bool = False) -> dict[str, Any] | None:
    """What was stored of a run that came to its end; None before. SystemExit if it is not the run that is asked for.

    With `any_code` it may have been made by other code than today's, as long as all were made by the same.
    """
    folder = _folder(arm, seed, work)
    plan = folder / "plan.json"
    if plan.exists():
        stored = json.loads(plan.read_text())
        now = plan_of(arm, seed, steps)
        different = [n for n in now if stored.get(n) != now[n] and not (any_code and n == "code")]
        if different:
            raise SystemExit(
                f"{folder} holds a run of other {' and '.join(different)}, and arms are compared: remove it, or name "
                "another folder with --keep"
            )
    result = folder / "result.json"
    if not result.exists():
        return None
    document: dict[str, Any] = json.loads(result.read_text())
    return document


def run_arm(arm: Arm, seed: int, steps: int, work: Path) -> dict[str, Any]:
    """Train it, from where it stopped before; store and return its figures."""
    folder = _folder(arm, seed, work)
    folder.mkdir(parents=True, exist_ok=True)
    data, run, plan = folder.parent / "data", folder / "run", plan_of(arm, seed, steps)
    command = [sys.executable, "-m", "deepcoder_trainer"]
    making = Seconds(folder.parent / "make-seconds.json")
    if not data.exists():
        _say(f"seed {seed}: making problems and model")
        make = [*command, "make-demo", "--output", str(data), "--seed", str(seed)]
        making.add("make", make, folder.parent / "make.log", MAKE_SECONDS)
    _write(folder / "plan.json", plan)
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(arm_config(arm, seed, steps, data, run), sort_keys=False))
    _say(f"seed {seed}, {arm.name}: training, log in {folder / 'run.log'}")
    seconds = Seconds(folder / "seconds.json")
    seconds.add("run", [*command, "run", "--config", str(config)], folder / "run.log", RUN_SECONDS)
    history = read_history(open_storage(f"file://{run}"))
    if len(history.steps) != steps:
        raise SystemExit(f"{run} has {len(history.steps)} steps, not {steps}: see {folder / 'run.log'}")
    document = {
        "arm": arm.name,
        "seed": seed,
        "plan": plan,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds.spent["run"], 1),
        "steps": [dict(step.metrics) for step in history.steps],
    }
    _write(folder / "result.json", document)
    return document


def _folder(arm: Arm, seed: int, work: Path) -> Path:
    return work / f"seed-{seed}" / arm.name


def _write(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: what is there is believed by the next call."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, sort_keys=True))
    partial.replace(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
