"""`cost`: what runs have cost so far."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from deepcoder_cli.output import document, table
from deepcoder_cli.where import Where
from deepcoder_client.cost import cost as cost_of
from deepcoder_client.prices import per_gpu_hour, price_list

COLUMNS = ("namespace", "run", "phase", "gpus", "gpu hours", "wasted", "judge hours", "cost", "estimated")


def cost(where: Where, run: str | None, price_file: Path | None, gpu_hour: float | None, output: str) -> None:
    """Print what one run, or all, have cost."""
    prices = price_list(price_file, gpu_hour)
    if prices and per_gpu_hour(prices, {}) is None:
        raise click.UsageError(
            f"--prices {price_file} has no entry without a nodeSelector, and a status does not say on which nodes pods "
            "ran: add one, or give --gpu-hour"
        )
    client = where.client()
    runs = [client.get(run)] if run is not None else client.list(all_namespaces=where.all_namespaces)
    now = datetime.now(UTC)
    found = [(each, cost_of(each, now, prices)) for each in runs]
    if output != "table":
        entries = [{"namespace": r.metadata.namespace, "run": r.metadata.name, "cost": c} for r, c in found]
        document(entries[0] if run is not None else entries, output)
        return
    table(
        COLUMNS,
        (
            (
                r.metadata.namespace, r.metadata.name, r.status.phase, c.gpus, f"{c.gpu_hours:.2f}",
                f"{c.wasted_gpu_hours:.2f}", f"{c.sandbox_hours:.2f}",
                None if c.amount is None else f"{c.amount:,.2f}", c.estimated,
            )
            for r, c in found
        ),
    )  # fmt: skip
