"""Grafana dashboards from a short description: what is asked, in which unit, under which title.

`python monitoring/dashboards.py` writes them below the chart, `--check` fails where a file differs. A panel is one
question with an answer in PromQL; a test tries each against a real Prometheus, so a metric that is renamed is noticed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from grafana import Dashboard, Panel, Variable, rendered

FOLDER = Path(__file__).resolve().parents[1] / "helm" / "deepcoder-operator" / "files" / "dashboards"
_RUN = 'namespace=~"$namespace",run=~"$run"'
_POOL = 'namespace=~"$namespace",pool=~"$pool"'
_JUDGES = 'namespace=~"$namespace",pool=~"$pool"'
_NAMESPACE = 'namespace=~"$namespace"'
_OPERATOR = "deepcoder_operator_"


def _of_run(metric: str, extra: str = "") -> str:
    return f"deepcoder_trainer_{metric}{{{_RUN}{extra}}}"


def _rate(metric: str, by: str, extra: str = "") -> str:
    return (
        f"sum by ({by}) (rate({metric}{{{extra}}}[$__rate_interval]))"
        if extra
        else f"sum by ({by}) (rate({metric}[$__rate_interval]))"
    )


def _all_namespaces(by: str, metric: str) -> str:
    """How many there are in the namespaces that are chosen; of several replicas one alone knows."""
    return f"sum by ({by}) (max by (namespace, {by}) ({_OPERATOR}{metric}{{{_NAMESPACE}}}))"


def _quantile(q: str, metric: str, selector: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"


TRAINING = Dashboard(
    uid="deepcoder-training",
    title="DeepCoder / Training",
    variables=(
        Variable("namespace", "namespace", "deepcoder_trainer_step"),
        Variable("run", "run", 'deepcoder_trainer_step{namespace=~"$namespace"}'),
    ),
    panels=(
        Panel("Step", ((_of_run("step"), "{{namespace}}/{{run}} {{stage}}"),), width=6, kind="stat"),
        Panel("Mean reward", ((_of_run("reward_mean"), "{{namespace}}/{{run}}"),), width=6, kind="stat"),
        Panel(
            "Truncated share",
            ((_of_run("truncated_ratio"), "{{namespace}}/{{run}}"),),
            "percentunit",
            width=6,
            kind="stat",
        ),
        Panel(
            "Since the last checkpoint",
            ((f"time() - {_of_run('checkpoint_last_success_timestamp_seconds')}", "{{namespace}}/{{run}}"),),
            "s",
            width=6,
            kind="stat",
        ),
        Panel(
            "Reward",
            (
                (_of_run("reward_mean"), "{{namespace}}/{{run}} mean"),
                (_of_run("solved_all_ratio"), "{{namespace}}/{{run}} all solved"),
                (_of_run("solved_none_ratio"), "{{namespace}}/{{run}} none solved"),
            ),
        ),
        Panel(
            "Response length",
            (
                (_of_run("response_tokens_mean"), "{{namespace}}/{{run}} mean"),
                (_of_run("response_tokens_p95"), "{{namespace}}/{{run}} p95"),
                (_of_run("response_tokens_max"), "{{namespace}}/{{run}} max"),
            ),
            "short",
            "Tokens of the last step's responses.",
        ),
        Panel(
            "Cut off, without code, unjudged",
            (
                (_of_run("truncated_ratio"), "{{namespace}}/{{run}} truncated"),
                (_of_run("no_code_ratio"), "{{namespace}}/{{run}} no code"),
                (_of_run("quarantined_ratio"), "{{namespace}}/{{run}} quarantined"),
            ),
            "percentunit",
        ),
        Panel(
            "Entropy",
            ((_of_run("entropy"), "{{namespace}}/{{run}}"),),
            "short",
            "Nats a token. A collapse ends learning.",
        ),
        Panel(
            "Clipped share",
            (
                (_of_run("clipped_low_ratio"), "{{namespace}}/{{run}} low"),
                (_of_run("clipped_high_ratio"), "{{namespace}}/{{run}} high"),
            ),
            "percentunit",
        ),
        Panel(
            "Staleness",
            (
                (_of_run("staleness_mean"), "{{namespace}}/{{run}} mean"),
                (_of_run("staleness_max"), "{{namespace}}/{{run}} max"),
            ),
            "short",
            "Versions of the weights between admission and training.",
        ),
        Panel(
            "Seconds by phase",
            (
                (
                    _rate("deepcoder_trainer_phase_seconds_sum", "namespace, run, phase", _RUN)
                    + " / ignoring(phase) group_left "
                    + _rate("deepcoder_trainer_phase_seconds_count", "namespace, run", f'{_RUN},phase="train"'),
                    "{{namespace}}/{{run}} {{phase}}",
                ),
            ),
            "s",
            "Mean over the steps of the interval.",
            stacked=True,
        ),
        Panel(
            "Idle",
            ((_of_run("idle_ratio"), "{{namespace}}/{{run}} {{role}}"),),
            "percentunit",
            "Share of the time in which learners or samplers had nothing to do.",
        ),
        Panel(
            "Judging",
            (
                (
                    _quantile("0.5", "deepcoder_trainer_sandbox_seconds", _RUN, "namespace, run"),
                    "{{namespace}}/{{run}} p50",
                ),
                (
                    _quantile("0.95", "deepcoder_trainer_sandbox_seconds", _RUN, "namespace, run"),
                    "{{namespace}}/{{run}} p95",
                ),
            ),
            "s",
            "As the trainer sees it, waiting included.",
        ),
        Panel(
            "Tokens a second",
            (
                (
                    _rate("deepcoder_trainer_tokens_sampled_total", "namespace, run", _RUN),
                    "{{namespace}}/{{run}} sampled",
                ),
                (
                    _rate("deepcoder_trainer_tokens_trained_total", "namespace, run", _RUN),
                    "{{namespace}}/{{run}} trained",
                ),
            ),
        ),
        Panel(
            "Gradient norm",
            (
                (_of_run("grad_norm"), "{{namespace}}/{{run}} mean"),
                (_of_run("grad_norm_max"), "{{namespace}}/{{run}} max"),
            ),
        ),
        Panel(
            "Sampler against learner",
            (
                (_of_run("mismatch_kl"), "{{namespace}}/{{run}} KL"),
                (_of_run("logprob_gap_abs_p95"), "{{namespace}}/{{run}} gap p95"),
            ),
            "short",
            "Differences of log-probabilities. Growing ones mean that both disagree on the weights.",
        ),
        Panel(
            "Samplers replaced, judges failed",
            (
                (_of_run("sampler_restarts"), "{{namespace}}/{{run}} samplers"),
                (_of_run("judge_errors"), "{{namespace}}/{{run}} judges"),
            ),
        ),
        Panel("Checkpoint", ((_of_run("checkpoint_seconds"), "{{namespace}}/{{run}} {{part}}"),), "s"),
    ),
)

RUNS = Dashboard(
    uid="deepcoder-runs",
    title="DeepCoder / Runs and operator",
    variables=(Variable("namespace", "namespace", "deepcoder_operator_runs"),),
    panels=(
        Panel("Runs", ((_all_namespaces("phase", "runs"), "{{phase}}"),), stacked=True),
        Panel(
            "Failed attempts",
            (
                (
                    f"sum by (namespace, reason) (increase({_OPERATOR}attempt_failures_total{{{_NAMESPACE}}}[1h]))",
                    "{{namespace}} {{reason}}",
                ),
            ),
            "short",
            "In the last hour, by cause.",
        ),
        Panel(
            "Reports of trainers", ((_rate("deepcoder_operator_progress_reports_total", "code"), "{{code}}"),), "reqps"
        ),
        Panel(
            "Warnings",
            (
                (
                    f"sum by (namespace, reason) (increase({_OPERATOR}warnings_total{{{_NAMESPACE}}}[1h]))",
                    "{{namespace}} {{reason}}",
                ),
            ),
            "short",
            "After which somebody has to look.",
        ),
        Panel("Passes", ((_rate("deepcoder_operator_passes_total", "result"), "{{result}}"),), "ops"),
        Panel(
            "Seconds of a pass",
            (
                (_quantile("0.5", "deepcoder_operator_pass_seconds", ""), "p50"),
                (_quantile("0.99", "deepcoder_operator_pass_seconds", ""), "p99"),
            ),
            "s",
        ),
        Panel(
            "Seconds of a question to storage",
            (
                (_quantile("0.5", "deepcoder_operator_storage_seconds", ""), "p50"),
                (_quantile("0.99", "deepcoder_operator_storage_seconds", ""), "p99"),
            ),
            "s",
        ),
        Panel(
            "Longest in a phase",
            (
                (
                    f"max by (namespace, phase) ({_OPERATOR}oldest_run_seconds{{{_NAMESPACE},"
                    'phase=~"Pending|Queued|Starting|Backoff"})',
                    "{{namespace}} {{phase}}",
                ),
            ),
            "s",
            "How long the run that has been in a phase longest has been in it; one that is starting may hold GPUs.",
        ),
        Panel(
            "Runs that wait for storage, or are refused what they need",
            (
                (_all_namespaces("reason", "runs_waiting_for_storage"), "{{reason}}"),
                (_all_namespaces("reason", "runs_hindered"), "{{reason}}"),
            ),
        ),
        Panel(
            "Requests",
            (
                (_rate("deepcoder_operator_api_requests_total", "method"), "API server {{method}}"),
                (_rate("deepcoder_operator_storage_requests_total", "method"), "storage {{method}}"),
            ),
            "reqps",
        ),
        Panel(
            "Status writes",
            (
                ("sum(rate(deepcoder_operator_status_writes_total[$__rate_interval]))", "writes"),
                ("sum(rate(deepcoder_operator_status_refused_total[$__rate_interval]))", "refused"),
            ),
            "ops",
        ),
        Panel("Who leads", (("deepcoder_operator_leader", "{{pod}}"),)),
        Panel(
            "Age of watches, lag of the loop",
            (
                ("max by (watch) (deepcoder_operator_watch_age_seconds)", "{{watch}}"),
                ("max(deepcoder_operator_loop_lag_seconds)", "lag"),
            ),
            "s",
        ),
        Panel("Watches that are refused", (("max by (watch) (deepcoder_operator_watch_refused)", "{{watch}}"),)),
    ),
)

JUDGES = Dashboard(
    uid="deepcoder-judges",
    title="DeepCoder / Judges",
    variables=(
        Variable("namespace", "namespace", "deepcoder_operator_pool_slots"),
        Variable("pool", "pool", 'deepcoder_operator_pool_slots{namespace=~"$namespace"}'),
    ),
    panels=(
        Panel(
            "Judges",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_desired_replicas{{{_POOL}}})",
                    "{{namespace}}/{{pool}} wanted",
                ),
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_ready_replicas{{{_POOL}}})",
                    "{{namespace}}/{{pool}} ready",
                ),
            ),
        ),
        Panel(
            "Slots",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_slots{{{_POOL}}})",
                    "{{namespace}}/{{pool}} slots",
                ),
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_busy_slots{{{_POOL}}})",
                    "{{namespace}}/{{pool}} busy",
                ),
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_demand{{{_POOL}}})",
                    "{{namespace}}/{{pool}} wanted",
                ),
            ),
        ),
        Panel(
            "Waiting",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_queue_depth{{{_POOL}}})",
                    "{{namespace}}/{{pool}} programs",
                ),
            ),
        ),
        Panel(
            "Longest wait",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_longest_wait_seconds{{{_POOL}}})",
                    "{{namespace}}/{{pool}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Nodes avoided",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_avoided_nodes{{{_POOL}}})",
                    "{{namespace}}/{{pool}}",
                ),
            ),
            "short",
            "On which judges did not start within the hour: kubectl describe sbp names them.",
        ),
        Panel(
            "Verdicts",
            ((_rate("deepcoder_sandbox_verdicts_total", "verdict", _JUDGES), "{{verdict}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "Submissions", ((_rate("deepcoder_sandbox_submissions_total", "outcome", _JUDGES), "{{outcome}}"),), "ops"
        ),
        Panel(
            "Seconds by phase",
            (
                (_quantile("0.5", "deepcoder_sandbox_phase_seconds", _JUDGES, "phase"), "{{phase}} p50"),
                (_quantile("0.99", "deepcoder_sandbox_phase_seconds", _JUDGES, "phase"), "{{phase}} p99"),
            ),
            "s",
        ),
        Panel(
            "CPU of programs",
            (
                (
                    _rate("deepcoder_sandbox_program_cpu_seconds_total", "namespace, pool", _JUDGES),
                    "{{namespace}}/{{pool}}",
                ),
            ),
            "short",
            "Cores.",
        ),
        Panel(
            "Refused requests",
            ((_rate("deepcoder_sandbox_refused_requests_total", "status", _JUDGES), "{{status}}"),),
            "reqps",
            "429: full. 401: a wrong token.",
        ),
        Panel(
            "Zygotes ended",
            ((_rate("deepcoder_sandbox_recycled_zygotes_total", "reason", _JUDGES), "{{reason}}"),),
            "ops",
        ),
        Panel(
            "Isolation",
            ((f"sum by (tier) (deepcoder_sandbox_isolation_tier{{{_JUDGES}}})", "{{tier}}"),),
            "short",
            "Judges by the tier that is in force.",
        ),
        Panel(
            "Memory of judges",
            (
                (
                    f"max by (namespace, pool) (process_resident_memory_bytes{{{_JUDGES}}})",
                    "{{namespace}}/{{pool}} largest",
                ),
            ),
            "bytes",
        ),
    ),
)

DASHBOARDS = (RUNS, TRAINING, JUDGES)


def main() -> int:
    """Write them, or say which differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    check = parser.parse_args().check
    stale = []
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.uid}.json"
        text = json.dumps(rendered(dashboard), indent=1) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.name)
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and stale:
        print(f"differ from monitoring/dashboards.py: {', '.join(stale)}; run make generate", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
