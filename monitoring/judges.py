"""The dashboard of judges: pools, queues and waits, verdicts, the time of a test, and the memory of judges."""

from __future__ import annotations

from grafana import Dashboard, Panel, Variable
from promql import POOL, quantile, rate

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
                    f"max by (namespace, pool) (deepcoder_operator_pool_desired_replicas{{{POOL}}})",
                    "{{namespace}}/{{pool}} wanted",
                ),
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_ready_replicas{{{POOL}}})",
                    "{{namespace}}/{{pool}} ready",
                ),
            ),
        ),
        Panel(
            "Slots",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_slots{{{POOL}}})",
                    "{{namespace}}/{{pool}} slots",
                ),
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_busy_slots{{{POOL}}})",
                    "{{namespace}}/{{pool}} busy",
                ),
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_demand{{{POOL}}})",
                    "{{namespace}}/{{pool}} wanted",
                ),
            ),
        ),
        Panel(
            "Waiting",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_queue_depth{{{POOL}}})",
                    "{{namespace}}/{{pool}} programs",
                ),
            ),
        ),
        Panel(
            "Longest wait",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_longest_wait_seconds{{{POOL}}})",
                    "{{namespace}}/{{pool}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Nodes avoided",
            (
                (
                    f"max by (namespace, pool) (deepcoder_operator_pool_avoided_nodes{{{POOL}}})",
                    "{{namespace}}/{{pool}}",
                ),
            ),
            "short",
            "Nodes on which judges did not start within the last hour; kubectl describe sbp names them.",
        ),
        Panel(
            "Verdicts",
            ((rate("deepcoder_sandbox_verdicts_total", "verdict", POOL), "{{verdict}}"),),
            "ops",
            stacked=True,
        ),
        Panel("Submissions", ((rate("deepcoder_sandbox_submissions_total", "outcome", POOL), "{{outcome}}"),), "ops"),
        Panel(
            "Seconds by phase",
            (
                (quantile("0.5", "deepcoder_sandbox_phase_seconds", POOL, "phase"), "{{phase}} p50"),
                (quantile("0.99", "deepcoder_sandbox_phase_seconds", POOL, "phase"), "{{phase}} p99"),
            ),
            "s",
        ),
        Panel(
            "CPU of programs",
            (
                (
                    rate("deepcoder_sandbox_program_cpu_seconds_total", "namespace, pool", POOL),
                    "{{namespace}}/{{pool}}",
                ),
            ),
            "short",
            "Cores.",
        ),
        Panel(
            "Refused requests",
            ((rate("deepcoder_sandbox_refused_requests_total", "status", POOL), "{{status}}"),),
            "reqps",
            "429: full. 401: a wrong token.",
        ),
        Panel(
            "Zygotes ended",
            ((rate("deepcoder_sandbox_recycled_zygotes_total", "reason", POOL), "{{reason}}"),),
            "ops",
        ),
        Panel(
            "Isolation",
            ((f"sum by (tier) (deepcoder_sandbox_isolation_tier{{{POOL}}})", "{{tier}}"),),
            "short",
            "Judges by the isolation tier in force.",
        ),
        Panel(
            "Memory of judges",
            (
                (
                    f"max by (namespace, pool) (process_resident_memory_bytes{{{POOL}}})",
                    "{{namespace}}/{{pool}} largest",
                ),
            ),
            "bytes",
        ),
    ),
)
