"""`lineage` and `verify`: where a model comes from, read from the bucket link by link.

The chain ends at the first manifest that is missing or does not match its child. The commands name it and exit with 1.
A bucket that does not answer says nothing about a chain and has its own exit code.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

import click

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.output import document, table
from deepcoder_cli.terminal import say
from deepcoder_cli.where import Where
from deepcoder_client.errors import NoData
from deepcoder_contracts.chain import Damaged, Link

if TYPE_CHECKING:
    from deepcoder_client.run_folder import RunFolder

COLUMNS = ("kind", "stage", "step", "attempt", "created", "payload", "digest", "folder")
_LONG = 3
"""How many of the last columns do not fit a terminal of 80 columns beside the others."""


def lineage(where: Where, run: str, uri: str | None, endpoint: str | None, output: str) -> int:
    """Print the chain of a model."""
    folder = where.client().folder(run, endpoint=endpoint)
    links, broken = _walk(folder, uri, None, deep=False)
    _show(links, output)
    if broken:
        say(f"broken: {broken}", err=True)
    elif links and links[-1].manifest.model:
        say(f"root: {links[-1].manifest.model}", err=True)
    return Exit.NOT_SO if broken else Exit.DONE


def verify(where: Where, run: str, deep: bool, endpoint: str | None, output: str) -> int:
    """Verify the chains of all checkpoints, and print them."""
    client = where.client()
    found = client.get(run)
    folder = client.folder(found, endpoint=endpoint)
    targets = {c.uri: c.digest for s in reversed(found.status.stages) if (c := s.checkpoint) is not None}
    if not targets:
        raise NoData(f"{found.metadata.namespace}/{run} has no checkpoint yet")
    links: dict[str, Link] = {}
    problems = []
    for uri, digest in targets.items():
        if uri not in links or links[uri].pruned or links[uri].digest != digest:
            walked, broken = _walk(folder, uri, digest, deep=deep)
            links |= {link.uri: link for link in walked if link.uri not in links or links[link.uri].pruned}
            problems += [broken] if broken else []
    if output != "table":
        document({"verified": [_fields(link) for link in links.values()], "problems": problems}, output)
    else:
        _show(list(links.values()), output)
        for problem in problems:
            say(f"broken: {problem}")
        click.echo(f"{len(problems)} broken" if problems else "whole")
    return Exit.NOT_SO if problems else Exit.DONE


def _walk(folder: RunFolder, uri: str | None, digest: str | None, *, deep: bool) -> tuple[list[Link], str | None]:
    links: list[Link] = []
    try:
        links.extend(folder.lineage(uri, digest, deep=deep))  # links before a broken one are kept
    except Damaged as error:
        return links, str(error)
    return links, None


def _show(links: list[Link], output: str) -> None:
    if output != "table":
        document([_fields(link) for link in links], output)
    elif links:
        table(COLUMNS, map(_row, links), long=_LONG)


def _row(link: Link) -> list[object]:
    """Return the table's values for people; those for programs are in `_fields`."""
    m, fields = link.manifest, _fields(link)
    files = f"{len(m.files)} file{'' if len(m.files) == 1 else 's'}"
    fields["created"] = f"{m.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    fields["payload"] = "pruned" if link.pruned else f"{files}, {fields['bytes']:,} bytes"
    return [*(fields[column] for column in COLUMNS[:-1]), link.uri]


def _fields(link: Link) -> dict[str, object]:
    m = link.manifest
    return {
        "kind": m.kind, "stage": m.stage, "step": m.step, "attempt": m.ordinal, "created": m.created_at,
        "files": len(m.files), "bytes": sum(f.size for f in m.files), "pruned": link.pruned, "digest": link.digest,
        "uri": link.uri, "seed": m.seed,
        "configDigest": m.config_digest, "datasetDigest": m.dataset_digest, "codeDigest": m.code_digest,
        "image": m.image, "metrics": m.metrics,
    }  # fmt: skip
