"""`cost`: what runs have cost so far."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from deepcoder_cli.options import Number, OfCluster, cluster, examples, output, run_argument
from deepcoder_cli.output import document, table
from deepcoder_cli.where import Where
from deepcoder_client.cost import cost as cost_of
from deepcoder_client.prices import per_gpu_hour, price_list

COLUMNS = ("namespace", "run", "phase", "gpus", "gpu hours", "wasted", "judge hours", "cost", "estimated")


@click.command(
    cls=OfCluster,
    epilog=examples(
        """
kubectl deepcoder cost demo -n demo
kubectl deepcoder cost -A -o json
kubectl deepcoder cost demo --gpu-hour 2.5       # instead of the operator's price list
"""
    ),
)
@run_argument(required=False)
@click.option("--prices", "price_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Price list instead of the operator's. Its entry without a nodeSelector applies.")  # fmt: skip
@click.option("--gpu-hour", type=Number(min=0), metavar="PRICE", help="One price for every GPU.")
@output()
@cluster(all_namespaces=True)
def cost(where: Where, run: str | None, price_file: Path | None, gpu_hour: float | None, output: str) -> None:
    """Show what runs have cost so far.

    Shows GPU hours, wasted GPU hours and cost, for one run or for all. Wasted is what attempts spent after their last
    checkpoint. The cost needs a price list: the operator's (chart value `prices`) or one given here.
    """
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
