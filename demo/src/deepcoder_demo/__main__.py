"""`make demo`: a cluster, the platform, one run from Pending to Complete, and its results.

Every step may be repeated. Finished steps are not done again, except the run itself, which always starts from the
beginning. Exit codes: 0 the run completed, 1 it did not, 64 something is missing (the message says how to fix it),
130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from rich.console import Console

from deepcoder_demo import devcluster, existing_cluster, manifest, platform, summary
from deepcoder_demo.commands import CommandFailed
from deepcoder_demo.data import UploadFailed
from deepcoder_demo.demo_lock import AlreadyRunning, lock_file, only_one
from deepcoder_demo.ready import make_ready
from deepcoder_demo.settings import NAMESPACE, REPOSITORY, RUN, SettingsError
from deepcoder_demo.stopwatch import Stopwatch

RUN_SECONDS = 2400
DELETE_SECONDS = 180
INTERRUPTED = (
    "interrupted. What is built is kept: make demo continues from there. A run that has started continues in the "
    "cluster until make demo starts another one; make down removes a cluster that the demo made"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="deepcoder-demo", description="The whole loop on a real cluster.")
    parser.add_argument("--prepare-only", action="store_true", help="stop when the platform is ready for runs")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupted)  # so that its child processes end too, as after Ctrl-C
    console = Console()
    try:
        return _demo(console, prepare_only=options.prepare_only)
    except SettingsError as error:
        return _failed(console, f"{error}", 64)
    except (AlreadyRunning, CommandFailed, UploadFailed) as error:
        return _failed(console, f"{error}", 1)
    except KeyboardInterrupt:
        return _failed(console, INTERRUPTED, 130)


def _interrupted(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _failed(console: Console, message: str, code: int) -> int:
    console.print(f"demo: {message}", style="red", highlight=False, markup=False)
    return code


def _demo(console: Console, *, prepare_only: bool) -> int:
    at = devcluster.places()
    with only_one(lock_file(at.cache, existing_cluster.named(os.environ, at.kubeconfig) or at.kubeconfig)):
        return _whole(console, prepare_only=prepare_only)


def _whole(console: Console, *, prepare_only: bool) -> int:
    stopwatch = Stopwatch(console)
    cluster = make_ready(stopwatch)
    if prepare_only:
        console.print(stopwatch.table())
        return 0
    file = manifest.written(cluster.s3)
    with stopwatch.part("the run"):
        platform.delete_and_wait(cluster, "deepcoderrun", RUN, NAMESPACE, seconds=DELETE_SECONDS)
        console.print(f"$ kubectl apply -f {file.relative_to(REPOSITORY)}")
        platform.kubectl(cluster, "apply", "-f", str(file))
        run = platform.follow(cluster, RUN, NAMESPACE, seconds=RUN_SECONDS)
    if (phase := run["status"].get("phase")) != "Complete":
        reasons = [c.get("message", "") for c in run["status"].get("conditions", []) if c["type"] == "Failed"]
        return _failed(console, f"the run ended as {phase}: {'; '.join(reasons)}", 1)
    with stopwatch.part("summary"):
        folder = summary.show(cluster, run, console)
        console.print(f"picture and figures: {folder.relative_to(REPOSITORY)}/")
    console.print(stopwatch.table())
    summary.farewell(cluster, NAMESPACE, RUN, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
