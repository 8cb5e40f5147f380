"""`stages`: progress, attempts and result of each stage."""

from __future__ import annotations

from collections.abc import Mapping

from deepcoder_cli.output import document, table
from deepcoder_cli.where import Where

COLUMNS = (
    *("stage", "type", "context", "phase", "step", "reward", "attempts", "failures", "preempted", "gate"),
    *("checkpoint", "message"),
)


def stages(where: Where, run: str, output: str) -> None:
    """Print a row for each stage."""
    found = where.client().get(run)
    known = {status.name: status for status in found.status.stages}
    if output != "table":
        document([{"spec": spec, "status": known.get(spec.name)} for spec in found.spec.stages], output)
        return
    rows = []
    for spec in found.spec.stages:
        status = known.get(spec.name)
        row: list[object] = [spec.name, spec.type, spec.context_tokens]
        if status is None:
            rows.append([*row, "Pending", *[None] * 8])
            continue
        step = f"{status.step}/{spec.max_steps}" if spec.max_steps else None
        results = told(status.results)
        checkpoint = status.checkpoint.uri.rsplit("/", 1)[-1] if status.checkpoint else None
        row += [status.phase, step, status.reward, status.attempts, status.failures, status.preemptions]
        rows.append([*row, status.gate_met, checkpoint, "; ".join(t for t in (status.message, results) if t)])
    table(COLUMNS, rows)


def told(results: Mapping[str, str]) -> str:
    """Return the evaluation results. A row has no room for the dozens of figures of a training step."""
    return ", ".join(
        f"{name} {value}"
        for name, value in sorted(results.items())
        if name.startswith("eval/") and name.endswith("/pass_at_1")
    )
