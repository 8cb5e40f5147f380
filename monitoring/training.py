"""The dashboard of training: reward, lengths, clipping, staleness, throughput and checkpoints of the chosen runs."""

from __future__ import annotations

from grafana import Dashboard, Panel, Variable
from promql import RUN, of_run, quantile, rate

_PARTS_OF_TRAIN = "pack|recompute|forward_backward|optimizer"
"""Phases within the phase `train`, whose seconds count them already."""


def _seconds_of_a_step(phases: str) -> str:
    """Return the mean seconds of a step by phase, of the phases that a matcher names."""
    seconds = rate("deepcoder_trainer_phase_seconds_sum", "namespace, run, phase", f"{RUN},{phases}")
    steps = rate("deepcoder_trainer_phase_seconds_count", "namespace, run", f'{RUN},phase="train"')
    return f"{seconds} / ignoring(phase) group_left {steps}"


def _per_second_of_steps(counter: str) -> str:
    """Return a counter per second of the steps that ended. It grows only when a step ends, so its rate alone would be
    many times too high after a long step, and 0 until the next one."""
    phases = f'{RUN},phase!~"{_PARTS_OF_TRAIN}"'
    counted = rate(f"deepcoder_trainer_{counter}", "namespace, run", RUN)
    return f"{counted} / {rate('deepcoder_trainer_phase_seconds_sum', 'namespace, run', phases)}"


TRAINING = Dashboard(
    uid="deepcoder-training",
    title="DeepCoder / Training",
    variables=(
        Variable("namespace", "namespace", "deepcoder_trainer_step"),
        Variable("run", "run", 'deepcoder_trainer_step{namespace=~"$namespace"}'),
    ),
    panels=(
        Panel("Step", ((of_run("step"), "{{namespace}}/{{run}} {{stage}}"),), width=6, kind="stat"),
        Panel("Mean reward", ((of_run("reward_mean"), "{{namespace}}/{{run}}"),), width=6, kind="stat", signed=True),
        Panel(
            "Truncated share",
            ((of_run("truncated_ratio"), "{{namespace}}/{{run}}"),),
            "percentunit",
            width=6,
            kind="stat",
        ),
        Panel(
            "Since the last checkpoint",
            ((f"time() - {of_run('checkpoint_last_success_timestamp_seconds')}", "{{namespace}}/{{run}}"),),
            "s",
            width=6,
            kind="stat",
        ),
        Panel(
            "Reward",
            (
                (of_run("reward_mean"), "{{namespace}}/{{run}} mean"),
                (of_run("solved_all_ratio"), "{{namespace}}/{{run}} all solved"),
                (of_run("solved_none_ratio"), "{{namespace}}/{{run}} none solved"),
            ),
            signed=True,
        ),
        Panel(
            "Response length",
            (
                (of_run("response_tokens_mean"), "{{namespace}}/{{run}} mean"),
                (of_run("response_tokens_p95"), "{{namespace}}/{{run}} p95"),
                (of_run("response_tokens_max"), "{{namespace}}/{{run}} max"),
            ),
            "short",
            "Tokens of the last step's responses.",
        ),
        Panel(
            "Cut off, without code, unjudged",
            (
                (of_run("truncated_ratio"), "{{namespace}}/{{run}} truncated"),
                (of_run("no_code_ratio"), "{{namespace}}/{{run}} no code"),
                (of_run("quarantined_ratio"), "{{namespace}}/{{run}} quarantined"),
            ),
            "percentunit",
        ),
        Panel(
            "Entropy",
            ((of_run("entropy"), "{{namespace}}/{{run}}"),),
            "short",
            "Nats per token. If it collapses, learning ends.",
        ),
        Panel(
            "Clipped share",
            (
                (of_run("clipped_low_ratio"), "{{namespace}}/{{run}} low"),
                (of_run("clipped_high_ratio"), "{{namespace}}/{{run}} high"),
            ),
            "percentunit",
        ),
        Panel(
            "Staleness",
            (
                (of_run("staleness_mean"), "{{namespace}}/{{run}} mean"),
                (of_run("staleness_max"), "{{namespace}}/{{run}} max"),
            ),
            "short",
            "Versions of the weights between admission and training.",
        ),
        Panel(
            "Seconds by phase",
            ((_seconds_of_a_step(f'phase!~"{_PARTS_OF_TRAIN}"'), "{{namespace}}/{{run}} {{phase}}"),),
            "s",
            "Mean over the steps of the interval.",
            stacked=True,
        ),
        Panel(
            "Seconds of training",
            ((_seconds_of_a_step(f'phase=~"{_PARTS_OF_TRAIN}"'), "{{namespace}}/{{run}} {{phase}}"),),
            "s",
            "Parts of the phase train, each on its slowest rank. Mean over the steps of the interval.",
            stacked=True,
        ),
        Panel(
            "Idle",
            ((of_run("idle_ratio"), "{{namespace}}/{{run}} {{role}}"),),
            "percentunit",
            "Share of the time in which learners or samplers had nothing to do.",
        ),
        Panel(
            "Judging",
            (
                (
                    quantile("0.5", "deepcoder_trainer_sandbox_seconds", RUN, "namespace, run"),
                    "{{namespace}}/{{run}} p50",
                ),
                (
                    quantile("0.95", "deepcoder_trainer_sandbox_seconds", RUN, "namespace, run"),
                    "{{namespace}}/{{run}} p95",
                ),
            ),
            "s",
            "What judges needed for a sample, without the wait for them.",
        ),
        Panel(
            "Tokens per second",
            (
                (_per_second_of_steps("tokens_sampled_total"), "{{namespace}}/{{run}} sampled"),
                (_per_second_of_steps("tokens_trained_total"), "{{namespace}}/{{run}} trained"),
            ),
            "short",
            "Tokens of a step by its seconds, from the second step of an attempt on.",
        ),
        Panel(
            "Gradient norm",
            (
                (of_run("grad_norm"), "{{namespace}}/{{run}} mean"),
                (of_run("grad_norm_max"), "{{namespace}}/{{run}} max"),
            ),
        ),
        Panel(
            "Sampler against learner",
            (
                (of_run("mismatch_kl"), "{{namespace}}/{{run}} KL"),
                (of_run("logprob_gap_abs_p95"), "{{namespace}}/{{run}} gap p95"),
            ),
            "short",
            "Difference in log-probability. If it grows, the two disagree on the weights.",
        ),
        Panel(
            "Samplers replaced, judges failed",
            (
                (of_run("sampler_restarts"), "{{namespace}}/{{run}} samplers"),
                (of_run("judge_errors"), "{{namespace}}/{{run}} judges"),
            ),
        ),
        Panel("Checkpoint", ((of_run("checkpoint_seconds"), "{{namespace}}/{{run}} {{part}}"),), "s"),
    ),
)
