"""`debug-bundle`: one archive with everything needed to investigate a problem, without secrets.

The archive names every part that could not be collected; a missing part does not stop the others. Values of Secrets are
removed from each part. If the value of a Secret is unknown, program output is left out, unless the user asks for it.
"""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import click

from deepcoder_cli.terminal import say
from deepcoder_cli.where import Where
from deepcoder_client.bundle import gather


def debug_bundle(
    where: Where, run: str, path: Path | None, operator_namespace: str, include_logs: bool, endpoint: str | None
) -> None:
    """Write the archive, and print what it holds and what is missing."""
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
    descriptor = os.open(path, flags, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):  # it may have been there, for others to read; a pipe stays as it is
        os.fchmod(descriptor, 0o600)
    return descriptor
