"""`kubectl deepcoder`: entry point named so that kubectl finds it.

Exit codes: 0 done, 1 the run failed or did not end in time, 2 wrong usage, 3 no such run, 4 a permission is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console

from deepcoder_cli.follow import NotFinished, follow
from deepcoder_cli.kube import Forbidden, Reader
from deepcoder_cli.view import curve_point, phase_of, render


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="kubectl deepcoder",
        description="Look at DeepCoder runs.",
        epilog="example: kubectl deepcoder status demo -n demo --watch",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="show a run, once or live")
    status.add_argument("run", help="name of the DeepCoderRun")
    status.add_argument("-n", "--namespace", default="default", help="its namespace (default: %(default)s)")
    status.add_argument("-w", "--watch", action="store_true", help="live, until the run ends")
    status.add_argument("--context", help="context of the kubeconfig")
    options = parser.parse_args(arguments)
    try:
        return _status(options)
    except Forbidden as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except NotFinished as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _status(options: argparse.Namespace) -> int:
    console = Console()
    reader = Reader(context=options.context)
    if options.watch:
        run = follow(reader, options.namespace, options.run, seconds=30 * 86400, console=console)
        return 0 if phase_of(run) == "Complete" else 1
    snapshot = reader.snapshot(options.namespace, options.run)
    if snapshot.run is None:
        print(f"error: no DeepCoderRun {options.run} in namespace {options.namespace}", file=sys.stderr)
        return 3
    point = curve_point(snapshot.run)
    console.print(render(snapshot, [point] if point else [], datetime.now(UTC)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
