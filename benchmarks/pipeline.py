"""How near to what is possible does the pipeline come? The real controller and work buffer, with models for GPUs.

    make bench-pipeline                        about nine minutes, mostly waiting
    python benchmarks/pipeline.py --virtual    the same on a clock that jumps: seconds, and no word on our own speed

Times of a step are those that DeepCoder's authors published for their code run (1.5B on 8 A100), `pipeline.json` has
them, and time runs 40 times faster than theirs. Samplers, judges and learners are models of what such machines do (see
pipeline_model.py); admission, rollouts, order, staleness, pushes and batches are the trainer's own code. On all GPUs in
turns: `serial` (judging begins when the batch is sampled) and `inline` (with each response). On GPUs that are split
into samplers and learners: `one_off` (strict, maxOffPolicy 1) and `window` (weights updated in flight, maxOffPolicy 1).

Each overlapped mode is held against the least time that is possible on the same trace: at least 95 % for one-off and
90 % for window, and no group staler than the bound; exit status 1 says that one was missed. Speed-ups are of the
seconds a step once the pipeline is full, as the published 1.96 (880 s to 450 s) is. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from page_head import commit, machine
from pipeline_model import ModelJudge, ModelLearner, SharedSampler, Trace, model_problems, one_off_bound, read_trace
from pipeline_model import window_bound as least_window_seconds
from virtual_clock import run_virtually

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.judge.endpoints import PER_SLOT
from deepcoder_trainer.pipeline.controller import Controller
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.rollout.rollout import Rollout, Sampling
from deepcoder_trainer.stopping import Stop

PAPER_SPEEDUP = 1.96
LEAST_ONE_OFF, LEAST_WINDOW = 0.95, 0.90
OTHER_SPEEDS = (40, 100, 150)
"""Tokens a second of a response alone, instead of those of pipeline.json, on which long tails depend most."""


@dataclass(frozen=True)
class Mode:
    """One way to train."""

    name: str
    off_policy: int
    order: str
    split: bool
    """Whether samplers and learners have GPUs of their own."""
    serial: bool = False


MODES = (
    Mode("serial", 0, "Strict", split=False, serial=True),
    Mode("inline", 0, "Strict", split=False),
    Mode("one_off", 1, "Strict", split=True),
    Mode("window", 1, "Window", split=True),
)


@dataclass
class Notes:
    """Hears of each step."""

    ended: list[float] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)

    def on_phase(self, phase: TrainerPhase) -> None:
        """Not of interest."""

    def on_step(self, report: StepReport) -> None:
        """When it ended."""
        self.ended.append(asyncio.get_running_loop().time())
        self.staleness.append(report.metrics["staleness_max"])


class NoCheckpoints:
    """Keeps nothing: checkpoints have a benchmark of their own."""

    async def copy(self, step: int) -> None: ...

    async def commit(self, state: PipelineState, **rest: Any) -> None: ...

    async def wait(self) -> None: ...


@dataclass(frozen=True)
class Measured:
    """What one mode came to, in the model's seconds."""

    total: float
    """From the first request to the last weights that are out."""
    step: float
    """A step, once the pipeline is full."""
    bound: float | None
    """The least that its rules allow for `total`."""
    staleness: float
    learner_idle: float
    samplers_used: float
    """Tokens that were sampled, of those that could have been in the same time."""
    cpu_share: float | None
    """CPU time of this process in its wall time; None on a virtual clock."""

    @property
    def of_bound(self) -> float | None:
        return None if self.bound is None else self.bound / self.total


def stage_config(trace: Trace, mode: Mode) -> StageConfig:
    """A stage as the operator would write it, with the trace's batch."""
    return StageConfig.model_validate(
        {
            "run": {"namespace": "bench", "name": "pipeline", "uid": "00000000-0000-0000-0000-000000000000"},
            "stage": {
                "name": mode.name.replace("_", "-"),
                "index": 0,
                "type": "Train",
                "contextTokens": trace.cap,
                "maxSteps": trace.steps,
            },
            "longestContextTokens": trace.cap,
            "ordinal": 1,
            "model": {"uri": "/none"},
            "dataset": {"uri": "/none"},
            "recipe": {
                "promptsPerStep": trace.prompts,
                "groupSize": trace.group,
                "maxOffPolicy": mode.off_policy,
                "order": mode.order,
            },
            "storage": {"uri": "file:///none", "everySteps": trace.steps},
            "provenance": {"configDigest": "sha256:" + "0" * 64},
        }
    )


async def run_mode(trace: Trace, mode: Mode, second: float) -> Measured:
    """Train the trace in one mode."""
    s = trace.seconds
    rate = trace.rate(s.split_sampling if mode.split else s.sampling)
    sampler = SharedSampler(trace, rate, second)
    learner = ModelLearner(trace, second, s.split_training if mode.split else s.training)
    config, notes = stage_config(trace, mode), Notes()
    sampling = Sampling(config.recipe.seed, trace.group, trace.cap, config.recipe.temperature)
    rollout = Rollout(sampler, ModelJudge(trace, second, mode.serial), sampling)
    controller = Controller(
        config=config,
        problems=model_problems(1000),
        sampler=sampler,
        learner=learner,  # type: ignore[arg-type]
        rollout=rollout,
        checkpoints=NoCheckpoints(),
        observer=notes,
        stop=Stop(),
        state=PipelineState(0, 0, 0, 0),
        admission_gate=lambda: rollout.room(lambda: PER_SLOT * trace.judge_slots),
    )
    wall, cpu = time.monotonic(), time.process_time()
    ending = await controller.run()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    assert ending.step == trace.steps, "it trained to its end"
    assert sampler.began is not None
    total = (notes.ended[-1] - sampler.began) / second
    bounds = {"one_off": one_off_bound(trace, rate), "window": least_window_seconds(trace, rate, mode.off_policy)}
    return Measured(
        total=total,
        step=(notes.ended[-1] - notes.ended[0]) / second / max(1, trace.steps - 1),
        bound=bounds.get(mode.name),
        staleness=max(notes.staleness),
        learner_idle=1 - learner.busy / total,
        samplers_used=float(trace.lengths.sum()) / rate / total,
        cpu_share=cpu / wall if second < 1 else None,
    )


def summarize(measured: dict[str, Measured], virtual: bool) -> dict[str, Any]:
    """The figures that are promised, by name, and which of them are missed."""
    steps = {name: m.step for name, m in measured.items()}
    one_off, window = measured["one_off"], measured["window"]
    summary: dict[str, Any] = {
        "one_off_of_bound": round(one_off.of_bound or 0.0, 4),
        "window_of_bound": round(window.of_bound or 0.0, 4),
        **{
            f"{mode}_speedup_{baseline}": round(steps[baseline] / steps[mode], 3)
            for mode in ("one_off", "window")
            for baseline in ("serial", "inline")
        },
        "paper_speedup": PAPER_SPEEDUP,
        "seconds_a_step": {name: round(value, 1) for name, value in steps.items()},
        "staleness": {name: m.staleness for name, m in measured.items()},
        "idle": {name: round(m.learner_idle, 3) for name, m in measured.items()},
        "cpu_share": {name: m.cpu_share and round(m.cpu_share, 3) for name, m in measured.items()},
        "virtual": virtual,
    }
    stale = [mode.name for mode in MODES if measured[mode.name].staleness > mode.off_policy]
    summary["unmet"] = [
        *(["one_off_of_bound"] if summary["one_off_of_bound"] < LEAST_ONE_OFF else []),
        *(["window_of_bound"] if summary["window_of_bound"] < LEAST_WINDOW else []),
        *(f"staleness of {name}" for name in stale),
    ]
    return summary


def measure(trace: Trace, scale: float | None) -> dict[str, Measured]:
    """All modes, one after another; without a scale on a virtual clock."""
    measured = {}
    for mode in MODES:
        if scale is None:
            measured[mode.name] = run_virtually(run_mode(trace, mode, 1.0))
        else:
            measured[mode.name] = asyncio.run(run_mode(trace, mode, 1 / scale))
        print(row(mode, measured[mode.name]), flush=True)
    return measured


def elsewhere(trace: Trace) -> dict[str, dict[str, float]]:
    """What the overlapped modes reach of their bounds at other speeds of a response alone, on a virtual clock."""
    reached: dict[str, dict[str, float]] = {}
    for speed in OTHER_SPEEDS:
        other = replace(trace, fastest=float(speed))
        runs = {mode.name: run_virtually(run_mode(other, mode, 1.0)) for mode in MODES if mode.split}
        reached[str(speed)] = {name: round(m.of_bound or 0.0, 4) for name, m in runs.items()}
    return reached


HEADER = (
    "| mode | s a step | s in all | least possible | reached | staleness | learner idle | samplers used | our CPU |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def row(mode: Mode, m: Measured) -> str:
    """A line of the table."""
    bound = "" if m.bound is None else f"{m.bound:.0f}"
    reached = "" if m.of_bound is None else f"{m.of_bound:.1%}"
    cpu = "" if m.cpu_share is None else f"{m.cpu_share:.0%}"
    return (
        f"| {mode.name} | {m.step:.1f} | {m.total:.0f} | {bound} | {reached} | {m.staleness:.0f} | "
        f"{m.learner_idle:.0%} | {m.samplers_used:.0%} | {cpu} |"
    )


def page(code: str, trace: Trace, scale: float | None, measured: dict[str, Measured], summary: dict[str, Any]) -> str:
    """The dated page."""
    s = trace.seconds
    own = "" if scale is None else f": {scale:.0f} times its share beside GPUs of these speeds"
    clock = "on a virtual clock" if scale is None else f"time {scale:.0f} times faster than theirs"
    rows = "\n".join(row(mode, measured[mode.name]) for mode in MODES)
    speedups = "\n".join(
        f"| {mode} | {summary[f'{mode}_speedup_serial']:.2f}× | {summary[f'{mode}_speedup_inline']:.2f}× |"
        for mode in ("one_off", "window")
    )
    others = "\n".join(
        f"| {speed} | {reached['one_off']:.1%} | {reached['window']:.1%} |"
        for speed, reached in summary["of_bound_at_other_speeds"].items()
    )
    return f"""# The pipeline, {datetime.date.today().isoformat()}

Commit {code}, {machine()}; {clock}.
`make bench-pipeline` repeats it, `benchmarks/pipeline.py` says what is measured, `benchmarks/pipeline.json` with what.

**No GPU was used.** The controller, the work buffer and the rollouts are the trainer's own; samplers, learners and
judges are models that take the published times of a step: {s.sampling:.0f} s of sampling, {s.training:.0f} s of
training and {s.reward:.0f} s of judging where all GPUs do them in turn, {s.split_sampling:.0f} s and
{s.split_training:.0f} s on GPUs that are split, {s.sync:.0f} s for weights. {trace.steps} steps of
{trace.prompts} × {trace.group} responses of log-normal length, which share the samplers evenly. What it says is how
much of the possible overlap the scheduling reaches, and what the trainer's own code costs; what GPUs make of it has to
be measured on GPUs.

{HEADER}
{rows}

"Least possible" is what the mode's own rules allow on the same lengths: for one-off the sum over steps of the longer of
sampling the next batch, and training and sending weights; for window a learner that never waits once it has the first
batch, or samplers that never idle. "Samplers used" is the tokens that were sampled, of those that could have been.
"Our CPU" is the share of one core that this process took, models included{own}.

Speed-up of a step, once the pipeline is full; DeepCoder's authors measured {PAPER_SPEEDUP}× (880 s to 450 s) for
one-off against serial on their code run:

| mode | against serial | against inline rewards |
|---|---|---|
{speedups}

How much of its bound a mode reaches depends on the tails of batches: on how fast a response is that has the samplers
to itself, {trace.fastest:.0f} tokens a second above. With other speeds, on a virtual clock:

| tokens a second | one_off | window |
|---|---|---|
{others}

The slower, the more a batch's time is that of its longest response, which no order of work shortens: a group that is
admitted with version v has to be trained by step v + 2, and is not done sooner.

Missed: {", ".join(summary["unmet"]) or "nothing"}.
"""


def main() -> int:
    """Run all modes, print the table, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--virtual", action="store_true", help="on a clock that jumps to whatever comes next")
    parser.add_argument("--steps", type=int, help="steps of each mode; default: as in pipeline.json")
    parser.add_argument("--prompts", type=int, help="prompts of a step; default: as in pipeline.json")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    options = parser.parse_args()
    code, (trace, scale) = commit(), read_trace(options.steps, options.prompts)
    print(HEADER, flush=True)
    measured = measure(trace, None if options.virtual else scale)
    summary = {**summarize(measured, options.virtual), "of_bound_at_other_speeds": elsewhere(trace)}
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(page(code, trace, None if options.virtual else scale, measured, summary))
    print(json.dumps(summary))
    return 1 if summary["unmet"] else 0


if __name__ == "__main__":
    sys.exit(main())
