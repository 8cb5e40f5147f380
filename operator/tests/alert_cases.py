"""For each of the chart's alerts, series that fire it and series that do not; and how promtool is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from devcluster import testprograms
from devcluster.config import cache_root

PREFIX = "deepcoder_operator_"
CASES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    # alert: series that fire it, series that do not, when it is looked at; values as promtool writes them
    "DeepCoderRunFailed": (
        {'warnings_total{namespace="red",reason="Failed"}': "0x30 1x60"},
        {
            'warnings_total{namespace="red",reason="Failed"}': "3x90",
            'runs{namespace="red",phase="Failed"}': "3x90",
        },  # kept for their records
        "60m",
    ),
    "DeepCoderRunNotStarting": (
        {'oldest_run_seconds{namespace="red",phase="Starting"}': "0+60x20"},
        {
            'oldest_run_seconds{namespace="red",phase="Starting"}': "0+60x14 0+60x6",
            'oldest_run_seconds{namespace="red",phase="Running"}': "7200x20",
        },
        "18m",
    ),
    "DeepCoderRunsHindered": (
        {'runs_hindered{namespace="red",reason="RayJobForbidden"}': "1x20"},
        {'runs_hindered{namespace="red",reason="RayJobForbidden"}': "1x8 0x2 1x10"},
        "15m",
    ),
    "DeepCoderRunsPreempted": (
        {'attempt_failures_total{namespace="red",reason="Preempted"}': "0x10 8x80"},
        {
            'attempt_failures_total{namespace="red",reason="Preempted"}': "0x10 2x80",
            'attempt_failures_total{namespace="red",reason="Stalled"}': "0x10 9x80",
        },
        "60m",
    ),
    "DeepCoderRunStalled": (
        {'attempt_failures_total{namespace="red",reason="Stalled"}': "0x30 1x60"},
        {'attempt_failures_total{namespace="red",reason="Preempted"}': "0x30 9x60"},
        "60m",
    ),
    "DeepCoderAttemptsFail": (
        {'attempt_failures_total{namespace="red",reason="HeadLost"}': "0x10 6x80"},
        {'attempt_failures_total{namespace="red",reason="Preempted"}': "0x10 60x80"},
        "60m",
    ),
    "DeepCoderRunNotAccepted": (
        {'runs{namespace="red",phase="Pending"}': "1x60"},
        {'runs{namespace="red",phase="Pending"}': "1x20 0x40"},
        "45m",
    ),
    "DeepCoderRunHeld": (
        {'runs{namespace="red",phase="Held"}': "2x90"},
        {'runs{namespace="red",phase="Held"}': "2x30 0x60"},
        "70m",
    ),
    "DeepCoderPoolNotReady": (
        {
            'pool_ready_replicas{namespace="red",pool="p"}': "1x30",
            'pool_desired_replicas{namespace="red",pool="p"}': "2x30",
        },
        {
            'pool_ready_replicas{namespace="red",pool="p"}': "2x30",
            'pool_desired_replicas{namespace="red",pool="p"}': "2x30",
        },
        "20m",
    ),
    "DeepCoderPoolSaturated": (
        {'pool_queue_depth{namespace="red",pool="p"}': "99x30", 'pool_slots{namespace="red",pool="p"}': "8x30"},
        {'pool_queue_depth{namespace="red",pool="p"}': "20x30", 'pool_slots{namespace="red",pool="p"}': "8x30"},
        "20m",
    ),
    "DeepCoderJudgesFail": (
        {'pool_pods_deleted_total{namespace="red",pool="p",cause="JudgeFailed"}': "0x5 9x40"},
        {'pool_pods_deleted_total{namespace="red",pool="p",cause="ScaledDown"}': "0x5 9x40"},
        "30m",
    ),
    "DeepCoderJudgesAvoidNodes": (
        {'pool_avoided_nodes{namespace="red",pool="p"}': "0x5 1x40"},
        {
            'pool_avoided_nodes{namespace="red",pool="p"}': "0x5 2x25 0x20",
            'pool_ready_replicas{namespace="red",pool="p"}': "1x50",
        },
        "40m",
    ),
    "DeepCoderOperatorDown": (
        {'leader{pod="a"}': "0x10"},
        {'leader{pod="a"}': "0x10", 'leader{pod="b"}': "1x10"},
        "5m",
    ),
    "DeepCoderOperatorRestarts": (
        {'start_time_seconds{pod="a"}': "1+60x70", 'leader{pod="a"}': "1x70"},
        {'start_time_seconds{pod="a"}': "1x20 1200x20 2400x30", 'start_time_seconds{pod="b"}': "7x30 1900x40"},
        "60m",
    ),
    "DeepCoderNoStandby": (
        {'leader{pod="a"}': "1x20"},
        {'leader{pod="a"}': "1x20", 'leader{pod="b"}': "0x20"},
        "15m",
    ),
    "DeepCoderLeaseFlaps": (
        {"lease_transitions": "1+1x70"},
        {"lease_transitions": "7x30 8x40"},
        "60m",
    ),
    "DeepCoderWatchStale": (
        {'watch_age_seconds{watch="rayjobs"}': "400x5"},
        {'watch_age_seconds{watch="rayjobs"}': "290x5"},
        "3m",
    ),
    "DeepCoderWatchRefused": (
        {'watch_refused{watch="pods"}': "1x20", 'watch_age_seconds{watch="pods"}': "20x20"},
        {'watch_refused{watch="pods"}': "1x3 0x17"},
        "10m",
    ),
    "DeepCoderLoopLag": ({"loop_lag_seconds": "3x20"}, {"loop_lag_seconds": "0x5 9x2 0x13"}, "15m"),
    "DeepCoderPassesFail": (
        {'passes_total{result="ok"}': "0+10x40", 'passes_total{result="error"}': "0+10x40"},
        {'passes_total{result="ok"}': "0+100x40", 'passes_total{result="error"}': "0+1x40"},
        "30m",
    ),
    "DeepCoderStorageProblems": (
        {'runs_waiting_for_storage{namespace="red",reason="StorageUnreachable"}': "1x20"},
        {'runs_waiting_for_storage{namespace="red",reason="StorageUnreachable"}': "1x5 0x2 1x13"},
        "15m",
    ),
    "DeepCoderLeftBehind": (
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x65 1x20"},
        {
            'warnings_total{namespace="red",reason="LeftBehind"}': "4x85",
            'warnings_total{namespace="red",reason="CheckpointLost"}': "0x65 1x20",
        },
        "80m",
    ),
    "DeepCoderArtifactsLeft": (
        {'warnings_total{namespace="red",reason="ArtifactsLeft"}': "0x5 1x20"},
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x5 1x20"},
        "20m",
    ),
    "DeepCoderPostMortemPartly": (
        {'warnings_total{namespace="red",reason="PostMortemPartly"}': "0x5 1x20"},
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x5 1x20"},
        "20m",
    ),
    "DeepCoderCheckpointLost": (
        {'warnings_total{namespace="red",reason="CheckpointLost"}': "0x5 1x20"},
        {'warnings_total{namespace="red",reason="LeftBehind"}': "0x5 1x20"},
        "20m",
    ),
    "DeepCoderNoReports": (
        {
            'runs{namespace="red",phase="Running"}': "2x30",
            'progress_reports_total{code="200"}': "0+4x8 36x22",
            'progress_reports_total{code="503"}': "0+4x30",
        },
        {'runs{namespace="red",phase="Running"}': "2x30", 'progress_reports_total{code="200"}': "0+4x30"},
        "25m",
    ),
    "DeepCoderStatusRefused": ({"status_refused_total": "0x5 1x20"}, {"status_refused_total": "4x25"}, "10m"),
    "DeepCoderStatusDropped": (
        {'status_dropped_fields{kind="SandboxPool"}': "0x5 2x20"},
        {'status_dropped_fields{kind="SandboxPool"}': "0x5 2x5 0x15"},
        "20m",
    ),
    "DeepCoderEventsLost": (
        {'events_lost_total{cause="QueueFull"}': "0x5 99x20"},
        {'events_lost_total{cause="QueueFull"}': "0x5 2x20"},
        "12m",
    ),
    "DeepCoderProgressRefused": (
        {'progress_reports_total{code="403"}': "0+60x60"},
        {'progress_reports_total{code="503"}': "0+60x60"},
        "40m",
    ),
}


APPEARS: dict[str, dict[str, str]] = {
    "DeepCoderRunFailed": {'warnings_total{namespace="red",reason="Failed"}': "_x30 1x10 0x50"},  # started again
    "DeepCoderLeftBehind": {'warnings_total{namespace="red",reason="LeftBehind"}': "_x30 2x10"},  # replaced
    "DeepCoderArtifactsLeft": {'warnings_total{namespace="red",reason="ArtifactsLeft"}': "_x30 1x60"},
    "DeepCoderCheckpointLost": {'warnings_total{namespace="red",reason="CheckpointLost"}': "_x30 1x60"},
    "DeepCoderPostMortemPartly": {'warnings_total{namespace="red",reason="PostMortemPartly"}': "_x30 1x60"},
    "DeepCoderRunStalled": {'attempt_failures_total{namespace="red",reason="Stalled"}': "_x30 1x60"},
    "DeepCoderAttemptsFail": {'attempt_failures_total{namespace="red",reason="NodeLost"}': "_x30 4x60"},
    "DeepCoderRunsPreempted": {'attempt_failures_total{namespace="red",reason="Preempted"}': "_x30 6x60"},
}
"""What an operator has counted before Prometheus sees it for the first time, a few seconds after it took over. Alerts
last an hour, also if that operator does not."""
APPEARS_AT = "60m"


def unit_test(name: str, series: Mapping[str, str], expression: str, at: str, ones: Sequence[str]) -> dict[str, Any]:
    """Of promtool: given series of the operator, an expression is 1 for each of these labels, and for no others."""
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": f"{PREFIX}{s}", "values": values} for s, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": at, "exp_samples": [{"labels": labels, "value": 1} for labels in ones]}
        ],
    }


def write_unit_tests(directory: Path, name: str, groups: list[dict[str, Any]], tests: list[dict[str, Any]]) -> None:
    """Rules as `name.yaml`, and what is to hold of them as `name-tests.yaml`."""
    (directory / f"{name}.yaml").write_text(yaml.safe_dump({"groups": groups}))
    spec = {"rule_files": [f"{name}.yaml"], "evaluation_interval": "1m", "tests": tests}
    (directory / f"{name}-tests.yaml").write_text(yaml.safe_dump(spec))


def promtool(directory: Path, *words: str) -> None:
    """Prometheus' own checker agrees."""
    program = testprograms.prometheus(cache_root()).parent / "promtool"
    done = subprocess.run([program, *words], cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
