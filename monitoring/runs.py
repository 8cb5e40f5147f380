"""The dashboard of runs and the operator: phases, attempts and failures, GPU time, and the operator's own health."""

from __future__ import annotations

from grafana import Dashboard, Panel, Variable
from promql import NAMESPACE, OPERATOR, all_namespaces, of_the_last_hour, quantile, rate

RUNS = Dashboard(
    uid="deepcoder-runs",
    title="DeepCoder / Runs and operator",
    variables=(Variable("namespace", "namespace", "deepcoder_operator_runs"),),
    panels=(
        Panel("Runs", ((all_namespaces("phase", "runs"), "{{phase}}"),), stacked=True),
        Panel(
            "Failed attempts",
            ((of_the_last_hour("attempt_failures"), "{{namespace}} {{reason}}"),),
            "short",
            "In the last hour, by cause.",
        ),
        Panel(
            "Reports from trainers", ((rate("deepcoder_operator_progress_reports_total", "code"), "{{code}}"),), "reqps"
        ),
        Panel(
            "Warnings",
            ((of_the_last_hour("warnings"), "{{namespace}} {{reason}}"),),
            "short",
            "Events that somebody should look at.",
        ),
        Panel("Passes", ((rate("deepcoder_operator_passes_total", "result"), "{{result}}"),), "ops"),
        Panel(
            "Seconds of a pass",
            (
                (quantile("0.5", "deepcoder_operator_pass_seconds", ""), "p50"),
                (quantile("0.99", "deepcoder_operator_pass_seconds", ""), "p99"),
            ),
            "s",
        ),
        Panel(
            "Seconds of a storage request",
            (
                (quantile("0.5", "deepcoder_operator_storage_seconds", ""), "p50"),
                (quantile("0.99", "deepcoder_operator_storage_seconds", ""), "p99"),
            ),
            "s",
        ),
        Panel(
            "Longest in a phase",
            (
                (
                    f"max by (namespace, phase) ({OPERATOR}oldest_run_seconds{{{NAMESPACE},"
                    'phase=~"Pending|Queued|Starting|Backoff"})',
                    "{{namespace}} {{phase}}",
                ),
            ),
            "s",
            "How long the oldest run in each phase has been in it. A run that is starting may hold GPUs.",
        ),
        Panel(
            "Runs that wait for storage, or that something refuses",
            (
                (all_namespaces("reason", "runs_waiting_for_storage"), "{{reason}}"),
                (all_namespaces("reason", "runs_hindered"), "{{reason}}"),
            ),
        ),
        Panel(
            "Requests",
            (
                (rate("deepcoder_operator_api_requests_total", "method"), "API server {{method}}"),
                (rate("deepcoder_operator_storage_requests_total", "method"), "storage {{method}}"),
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
            "Age of watches, lag of the event loop",
            (
                ("max by (watch) (deepcoder_operator_watch_age_seconds)", "{{watch}}"),
                ("max(deepcoder_operator_loop_lag_seconds)", "lag"),
            ),
            "s",
        ),
        Panel("Refused watches", (("max by (watch) (deepcoder_operator_watch_refused)", "{{watch}}"),)),
    ),
)
