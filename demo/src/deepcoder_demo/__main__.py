"""`make demo`: a cluster, the platform, one run from Pending to Complete, and what came of it.

Every step may be repeated; what is done is not done again, but the run itself always starts anew. Exit codes: 0 the
run completed, 1 it did not, 64 something is missing (said with the mend).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from deepcoder_cli.follow import NotFinished, follow
from deepcoder_cli.kube import Reader
from deepcoder_cli.view import phase_of
from deepcoder_demo import platform, summary
from deepcoder_demo.clock import Stopwatch
from deepcoder_demo.commands import CommandFailed
from deepcoder_demo.ready import make_ready
from deepcoder_demo.settings import NAMESPACE, REPOSITORY, RUN, SettingsError

MANIFEST = REPOSITORY / "examples/demo.yaml"
RUN_SECONDS = 2400
DELETE_SECONDS = 180


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="deepcoder-demo", description="The whole loop on a real cluster.")
    parser.add_argument("--prepare-only", action="store_true", help="stop when the platform is ready for runs")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        return _demo(console, prepare_only=options.prepare_only)
    except SettingsError as error:
        console.print(f"demo: {error}", style="red", highlight=False)
        return 64
    except (CommandFailed, NotFinished) as error:
        console.print(f"demo: {error}", style="red", highlight=False)
        return 1


def _demo(console: Console, *, prepare_only: bool) -> int:
    stopwatch = Stopwatch(console)
    cluster = make_ready(stopwatch)
    if prepare_only:
        console.print(stopwatch.table())
        return 0
    with stopwatch.part("the run"):
        platform.delete_and_wait(cluster, "deepcoderrun", RUN, NAMESPACE, seconds=DELETE_SECONDS)
        console.print(f"$ kubectl apply -f {MANIFEST.relative_to(REPOSITORY)}")
        platform.kubectl(cluster, "apply", "-f", str(MANIFEST))
        run = follow(Reader(cluster.kubeconfig), NAMESPACE, RUN, seconds=RUN_SECONDS, console=console)
    if phase_of(run) != "Complete":
        reasons = [c.get("message", "") for c in run["status"]["conditions"] if c["type"] == "Failed"]
        console.print(f"demo: the run ended as {phase_of(run)}: {'; '.join(reasons)}", style="red")
        return 1
    with stopwatch.part("summary"):
        folder = summary.show(cluster, run, console)
        console.print(f"picture and figures: {folder.relative_to(REPOSITORY)}/")
    console.print(stopwatch.table())
    summary.farewell(cluster, NAMESPACE, RUN, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
