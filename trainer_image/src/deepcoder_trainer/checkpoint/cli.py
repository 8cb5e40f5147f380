"""`deepcoder-trainer verify URI`: verifies a lineage in storage, one output line per link; status 1 on any problem."""

from __future__ import annotations

import argparse
import sys

from deepcoder_trainer.checkpoint.errors import StorageError
from deepcoder_trainer.checkpoint.verify import Link, walk_chain
from deepcoder_trainer.errors import BadConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("uri", help="folder of a checkpoint, an export or an evaluation: s3://… or file://…")
    parser.add_argument("--deep", action="store_true", help="read every file and check its SHA-256")
    parser.add_argument("--endpoint", help="S3 endpoint URL of a server other than AWS")
    parser.add_argument("--region", help="S3 region")


def main(options: argparse.Namespace) -> int:
    """Walk the lineage and print each link. Return 0 if no link has a problem."""
    broken = 0
    try:
        for link in walk_chain(options.uri, deep=options.deep, endpoint=options.endpoint, region=options.region):
            sys.stdout.write(describe(link) + "\n")
            broken += bool(link.problems)
    except ValueError as e:
        raise BadConfig(str(e)) from e
    except StorageError as e:
        sys.stderr.write(f"deepcoder-trainer verify: {e}\n")
        return 1
    sys.stdout.write("the chain is whole\n" if not broken else f"{broken} link(s) are broken\n")
    return 1 if broken else 0


def describe(link: Link) -> str:
    """Return one line for a link, and one more for each problem."""
    if link.manifest is None:
        head = f"unreadable  {link.uri}"
    else:
        m = link.manifest
        size = sum(f.size for f in m.files)
        payload = "payload pruned" if link.pruned else f"{len(m.files)} files, {size:,} bytes"
        head = f"{m.kind.value:<11} {m.stage} step {m.step} (attempt {m.ordinal})  {payload}  {link.digest}"
    return "\n".join([head, *(f"    {p}" for p in link.problems)])
