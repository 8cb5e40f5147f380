"""Follows a run live until it ends.

Reads may fail while an API server restarts: the last view stays, and after `PATIENCE_SECONDS` without an answer the
command exits with the last error. If the API server has never answered, its error ends the command at once, and so does
a run that does not exist. Without a terminal, a line is printed whenever something changed, followed once by what is
wrong and why the run waits, because in continuous integration the log is all that remains.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live

from deepcoder_cli.condition_messages import NewMessages
from deepcoder_cli.snapshot import Snapshot, take
from deepcoder_cli.terminal import printable
from deepcoder_cli.view import CurvePoint, curating, curve_point, phase_of, render
from deepcoder_client.client import PATIENCE_SECONDS, TERMINAL, Client
from deepcoder_client.connection import Object
from deepcoder_client.errors import NotFound, NotInTime, Unreachable

INTERVAL_SECONDS = 1.0


def follow(client: Client, name: str, *, seconds: float, console: Console) -> Object:
    """Show the run until it is Complete or Failed, and return its last state.

    Raises `NotInTime` after `seconds`, `NotFound` if there is no such run, or the API server's error (see above).
    """
    deadline = time.monotonic() + seconds
    answered: float | None = None
    curve: list[CurvePoint] = []
    said, told = "", NewMessages()
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while time.monotonic() < deadline:
            try:
                snapshot = take(client, name)
            except Unreachable:
                if answered is None or time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                time.sleep(INTERVAL_SECONDS)
                continue
            except NotFound as error:
                if answered is None:
                    raise
                raise NotFound(f"{client.namespace}/{name} was deleted") from error
            answered = time.monotonic()
            _extend(curve, snapshot.run)
            if console.is_terminal:
                live.update(render(snapshot, curve, datetime.now(UTC)))
            else:
                line = one_line(snapshot)
                changed = [line] if line != said else []
                # One indented line each: a CI runner could take a line that begins with a program's text for a command.
                whys = [f"  {' '.join(why.split())}" for why in told.news(snapshot, answered)]
                for news in changed + whys:
                    text = f"{datetime.now(UTC):%H:%M:%SZ} {printable(news)}"
                    console.print(text, highlight=False, markup=False, soft_wrap=True)
                said = line
            if phase_of(snapshot.run) in TERMINAL:
                return snapshot.run
            time.sleep(INTERVAL_SECONDS)
    raise NotInTime(f"{client.namespace}/{name} did not end within {seconds:.0f} s")


def one_line(snapshot: Snapshot) -> str:
    """Return the state in one line, for logs."""
    status = snapshot.run.get("status", {})
    stage, progress = status.get("currentStage", {}), status.get("progress", {})
    pool = (snapshot.pool or {}).get("status", {})
    words = [phase_of(snapshot.run)]
    if stage:
        words.append(f"stage {stage['name']} context {stage['contextTokens']} attempt {stage.get('ordinal', 0)}")
    if progress:
        words.append(f"curating {doing}" if (doing := curating(progress)) else f"step {progress['display']}")
        if progress.get("reward") is not None:
            words.append(f"reward {float(progress['reward']):.2f}")
        if progress.get("truncatedRatio") is not None:
            words.append(f"truncated {float(progress['truncatedRatio']):.2f}")
    if pool:
        words.append(f"judges {pool.get('readyReplicas', 0)}/{pool.get('desiredReplicas', 0)}")
    if checkpoint := status.get("latestCheckpoint"):
        words.append("checkpoint " + "/".join(checkpoint["uri"].rsplit("/", 2)[-2:]))
    return ", ".join(words)


def _extend(curve: list[CurvePoint], run: Object) -> None:
    point = curve_point(run)
    if point and (not curve or (curve[-1].stage, curve[-1].step) != (point.stage, point.step)):
        curve.append(point)
