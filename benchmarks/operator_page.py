"""What the operator's figures are held against, and the page that says so."""

from __future__ import annotations

import datetime
from typing import Any

from page_head import machine

BOUNDS: dict[str, tuple[float, str]] = {
    "adopt_1000_seconds": (30.0, "kill -9, then all runs adopted, s"),
    "cpu_ms_per_reconcile": (5.0, "CPU of a pass that finds nothing to do, ms"),
    "cpu_ms_per_create": (30.0, "CPU of a pass that writes or makes something, ms"),
    "rss_mb": (200.0, "most memory at any time (VmHWM), MB"),
    "apply_to_rayjob_p99_s": (2.0, "POST to RayJob, 99th percentile, s"),
    "curve_exponent": (1.05, "exponent of CPU over runs (1: linear)"),
    "written_at_rest": (0.0, "runs written while nothing happens"),
    "written_on_adoption": (0.0, "runs written on adoption"),
    "rayjobs_too_many": (0.0, "RayJobs beyond one a run"),
    "operator_ended": (0.0, "times that the operator ended by itself, its Lease not renewed for 10 s"),
    "beats_writes_per_run": (4.0, "status writes a run in a minute of reports"),
}
"""Figure to its bound, and what it is."""


def judge(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures by their names, rounded; `unmet` are those beyond their bounds, `unmeasured` the missing."""
    found = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
    found["curve"] = [[n, round(cpu, 2), round(wall, 1)] for n, cpu, wall in figures["curve"]]
    found[f"adopt_{figures['runs']}_seconds"] = found.pop("adopt_seconds")
    found["unmet"] = [name for name, (bound, _) in BOUNDS.items() if name in found and found[name] > bound]
    found["unmeasured"] = [name for name in BOUNDS if name not in found]
    return found


def table(found: dict[str, Any]) -> str:
    """Target, measured, ratio."""
    rows = ["| | at most | measured | measured / bound |", "|---|---|---|---|"]
    for name, (bound, text) in BOUNDS.items():
        value = found.get(name)
        ratio = "" if value is None or not bound else f"{value / bound:.2f}"
        rows.append(f"| {text} (`{name}`) | {bound:g} | {'not measured' if value is None else value} | {ratio} |")
    return "\n".join(rows)


def page(found: dict[str, Any], commit: str) -> str:
    """The dated page."""
    curve = "\n".join(f"| {n} | {cpu:.2f} | {1000 * cpu / n:.1f} | {wall:.0f} |" for n, cpu, wall in found["curve"])
    rest = "\n".join(
        f"| `{name}` | {value} |" for name, value in found.items() if name not in BOUNDS and name != "curve"
    )
    return (
        f"# The operator with {found['runs']} runs, {datetime.date.today().isoformat()}\n\n"
        f"Commit {commit}, {machine()}. `benchmarks/operator_scale.py` says what is"
        " measured, `make bench-operator` repeats it. API server, etcd, garbage collector and S3 server are real, and"
        " so are TLS, tokens and the chart's rights; a process of ours plays KubeRay, kubelets and trainers, so pods"
        " are objects that nobody runs, and kwok is not used. All of it shares the cores with the operator, and the"
        f" servers look for garbage when their heaps have grown by {found['server_heap_growth_percent']} percent, at"
        " Go's own 100 with a quarter more CPU time. S3's checks are part of every time. Adopted is a run whose first"
        " pass is done: one that waits for its bucket is not, and here no bucket is slow. Memory grows with the runs:"
        " that of fewer than 1,000 says nothing of the bound.\n\n" + table(found) + "\n\nHow the CPU time grows:\n\n"
        "| runs | operator's CPU, s | ms a run | wall, s |\n|---|---|---|---|\n"
        + curve
        + "\n\n| | |\n|---|---|\n"
        + rest
        + "\n"
    )
