"""`debug-bundle`: one archive with everything needed to investigate a problem, without secrets.

The archive names every part that could not be collected; a missing part does not stop the others. Values of Secrets are
removed from each part. If the value of a Secret is unknown, program output is left out, unless the user asks for it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
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
        _write(path, content)
    except OSError as error:
        raise click.UsageError(f"--file {path}: {error.strerror}") from None
    click.echo(f"{path}: {', '.join(sorted(bundle.documents))}")
    for line in bundle.missing:
        say(f"missing: {line}", err=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, because secrets that redaction does not know may still be in it.

    What was there stays until all of it is written.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):  # such as a pipe
            path.write_bytes(content)
            return
    path = Path(os.path.realpath(path))  # a link stays a link
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:  # the file itself may be writable
        raise OSError(error.errno, f"no file can be made in the folder {path.parent}: {error.strerror}") from None
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # an interrupt may come after it has its name
        raise
