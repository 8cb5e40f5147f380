"""`debug-bundle`: one archive with everything needed to investigate a problem, without secrets.

The archive names every part that could not be collected; a missing part does not stop the others. Values of Secrets are
removed from each part. If the value of a Secret is unknown, program output is left out, unless the user asks for it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from deepcoder_cli.options import OfCluster, cluster, endpoint, examples, run_argument
from deepcoder_cli.output import say
from deepcoder_cli.where import Where
from deepcoder_client.bundle import gather


@click.command(
    "debug-bundle",
    cls=OfCluster,
    epilog=examples(
        """
kubectl deepcoder debug-bundle demo -n demo
kubectl deepcoder debug-bundle demo --file /tmp/demo.tar.gz --operator-namespace deepcoder-system
kubectl deepcoder debug-bundle demo --include-logs
"""
    ),
)
@run_argument()
@click.option(
    "--file", "path", type=click.Path(path_type=Path), help="Archive to write (default: RUN-TIME.tar.gz here)."
)
@click.option("--operator-namespace", default="deepcoder", show_default=True, help="Namespace of the chart.")
@click.option(
    "--include-logs", is_flag=True, help="Include pod logs even if you may not read all of the pods' Secrets."
)
@endpoint
@cluster()
def debug_bundle(
    where: Where, run: str, path: Path | None, operator_namespace: str, include_logs: bool, endpoint: str | None
) -> None:
    """Collect everything needed to investigate a problem, without secrets.

    The archive holds the run, its child objects, pods, events, current logs, the logs of the last two attempts from
    the bucket, nodes, quotas, and the operator's own pods. You can send it to whoever helps you. Values of the Secrets
    that the pods can read, variables named like secrets, and tokens of known formats are removed. If you may not read
    these Secrets, logs and all messages that may quote them are left out. --include-logs includes them anyway; check
    them before you send the archive. REPORT.txt in the archive lists what could not be collected, and why.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise click.UsageError(f"--file {path}: name a file in an existing folder")
    bundle = gather(where.client(), run, operator_namespace=operator_namespace, logs=include_logs, endpoint=endpoint)
    stem = f"{run}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path = path or Path(f"{stem}.tar.gz")
    content = bundle.archive(stem)
    try:
        with open(path, "wb", opener=_for_its_owner) as file:
            file.write(content)
    except OSError as error:
        raise click.UsageError(f"--file {path}: {error.strerror}") from None
    click.echo(f"{path}: {', '.join(sorted(bundle.documents))}")
    for line in bundle.missing:
        say(f"missing: {line}", err=True)


def _for_its_owner(path: str, flags: int) -> int:
    """Open a file that only its owner can read: secrets that redaction does not know may still be in it."""
    return os.open(path, flags, 0o600)
