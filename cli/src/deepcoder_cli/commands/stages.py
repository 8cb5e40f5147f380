"""`stages`: progress, attempts and result of each stage."""

from __future__ import annotations

from collections.abc import Mapping

import click

from deepcoder_cli.options import OfCluster, cluster, examples, output, run_argument
from deepcoder_cli.output import document, table
from deepcoder_cli.where import Where

COLUMNS = (
    *("stage", "type", "context", "phase", "step", "reward", "attempts", "failures", "preempted", "gate"),
    *("checkpoint", "message"),
)


@click.command(
    cls=OfCluster,
    epilog=examples(
        """
kubectl deepcoder stages demo -n demo
kubectl deepcoder stages demo -o yaml
"""
    ),
)
@run_argument()
@output()
@cluster()
def stages(where: Where, run: str, output: str) -> None:
    """Show the progress and the result of each stage of a run.

    Shows phase, steps, attempts, failures and preemptions, gate, newest checkpoint and evaluation results. -o yaml also
    has all figures of the last step.
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
    """Return the evaluation results. A row has no room for the dozens of figures of a training step."""
    return ", ".join(
        f"{name} {value}"
        for name, value in sorted(results.items())
        if name.startswith("eval/") and name.endswith("/pass_at_1")
    )
