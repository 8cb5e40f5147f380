"""`kubectl deepcoder`: entry point named so that kubectl finds it.

Exit codes: 0 done, 1 the run failed or did not end in time, or the cluster does not answer, 2 wrong usage, 3 no such
run, 4 a permission is missing, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from kubernetes.client import ApiException
from rich.console import Console
from urllib3.exceptions import HTTPError

from deepcoder_cli.follow import NoSuchRun, NotFinished, absent, follow
from deepcoder_cli.kube import Forbidden, NoCluster, Reader
from deepcoder_cli.view import curve_point, phase_of, render

WATCH_SECONDS = 30 * 86400


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
    status.add_argument("-n", "--namespace", help="its namespace; that of the context when left out")
    status.add_argument("-w", "--watch", action="store_true", help="live, until the run ends")
    status.add_argument(
        "--timeout", type=float, default=WATCH_SECONDS, metavar="SECONDS", help="longest watch (default: 30 days)"
    )
    status.add_argument("--context", help="context of the kubeconfig")
    options = parser.parse_args(arguments)
    try:
        return _status(options)
    except NoSuchRun as error:
        return _failed(f"{error}", 3)
    except Forbidden as error:
        return _failed(f"{error}", 4)
    except (NotFinished, NoCluster) as error:
        return _failed(f"{error}", 1)
    except ApiException as error:
        hint = "; log in to the cluster again" if error.status == 401 else ""
        return _failed(f"the API server answers {error.status} {error.reason}{hint}", 1)
    except HTTPError as error:
        return _failed(
            f"the API server does not answer: {error}; is it up, and is it the one KUBECONFIG should name?", 1
        )
    except KeyboardInterrupt:
        return 130


def _failed(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _status(options: argparse.Namespace) -> int:
    console = Console()
    reader = Reader(options.context)
    namespace = options.namespace or reader.namespace
    if options.watch:
        run = follow(reader, namespace, options.run, seconds=options.timeout, console=console)
        return 0 if phase_of(run) == "Complete" else 1
    snapshot = reader.snapshot(namespace, options.run)
    if snapshot is None:
        raise NoSuchRun(absent(namespace, options.run))
    point = curve_point(snapshot.run)
    console.print(render(snapshot, [point] if point else [], datetime.now(UTC)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
