"""`stages`: how far each stage is, what became of its attempts, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping

import click

from deepcoder_cli.options import Where, cluster, examples, output, run_argument
from deepcoder_cli.output import document, table

COLUMNS = (
    *("stage", "type", "context", "phase", "step", "reward", "attempts", "failures", "preempted", "gate"),
    *("checkpoint", "message"),
)


@click.command(
    epilog=examples(
        """
kubectl deepcoder stages demo -n demo
kubectl deepcoder stages demo -o yaml
"""
    )
)
@run_argument()
@output()
@cluster()
def stages(where: Where, run: str, output: str) -> None:
    """Show how far each stage of a run is, and how it ended.

    Phase, steps, attempts and those that were lost, gate, newest checkpoint and what evaluations came to; all
    figures of the last step are in -o yaml.
    """
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
    """What evaluations came to; a row has no room for the dozens of figures that a training step has."""
    return ", ".join(
        f"{name} {value}"
        for name, value in sorted(results.items())
        if name.startswith("eval/") and name.endswith("/pass_at_1")
    )
