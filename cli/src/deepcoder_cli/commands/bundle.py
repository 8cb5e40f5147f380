"""`debug-bundle`: one archive with what somebody who helps needs to see, without secrets.

Whatever part of it cannot be had is named in the archive and stops no other. Values of Secrets are taken out of each;
where one is not known, nothing that a program printed is put in, unless that is asked for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from deepcoder_cli.options import Where, cluster, endpoint, examples, run_argument
from deepcoder_client.bundle import gather


@click.command(
    "debug-bundle",
    epilog=examples(
        """
kubectl deepcoder debug-bundle demo -n demo
kubectl deepcoder debug-bundle demo --file /tmp/demo.tar.gz --operator-namespace deepcoder-system
kubectl deepcoder debug-bundle demo --include-logs
"""
    ),
)
@run_argument()
@click.option("--file", "path", type=click.Path(path_type=Path), help="Where to (default: RUN-TIME.tar.gz here).")
@click.option("--operator-namespace", default="deepcoder", show_default=True, help="Where the chart is installed.")
@click.option("--include-logs", is_flag=True, help="Logs of pods although you may not read all of their Secrets.")
@endpoint
@cluster()
def debug_bundle(
    where: Where, run: str, path: Path | None, operator_namespace: str, include_logs: bool, endpoint: str | None
) -> None:
    """Save what helps to find a fault, without secrets.

    Run, children, pods, events, logs of now and, from the bucket, of the last two attempts, nodes, quotas and the
    operator's own pods go into one archive, to be sent to somebody who helps. Values of the Secrets
    that the pods can read, variables that are named as secrets, and tokens of known shapes are taken out. Without the
    right to read these Secrets logs and all messages that may quote them are left out, unless --include-logs is given:
    look through them then before you send them. REPORT.txt in the archive says what could not be had, and why.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise click.UsageError(f"--file {path}: name a file in a folder that there is")
    bundle = gather(where.client(), run, operator_namespace=operator_namespace, logs=include_logs, endpoint=endpoint)
    stem = f"{run}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = path or Path(f"{stem}.tar.gz")
    try:
        path.write_bytes(bundle.archive(stem))
    except OSError as error:
        raise click.UsageError(f"--file {path}: {error.strerror}") from None
    click.echo(f"{path}: {', '.join(sorted(bundle.documents))}")
    for line in bundle.missing:
        click.echo(f"missing: {line}", err=True)
