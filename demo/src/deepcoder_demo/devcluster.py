"""The demo's interface to devcluster: its command line, and the paths that it reports.

It uses only the standard library, because the checks before the set-up import it. If devcluster refuses, this is a
SettingsError, and devcluster itself has printed the fix; if devcluster tried and failed, it is a CommandFailed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from deepcoder_demo.commands import CommandFailed, run
from deepcoder_demo.settings import Cluster, Images, S3Access, SettingsError

WILL_NOT_DO = 64
LOOK_SECONDS = 60


@dataclass(frozen=True)
class Places:
    """Paths that devcluster uses, whether or not they exist yet."""

    cache: Path
    kubeconfig: Path
    kubectl: Path
    helm: Path
    images: Path
    s3: Path


def places() -> Places:
    """Ask `devcluster status --json`, which also answers if the cluster is down."""
    found = json.loads(run(_command("status", "--json"), seconds=LOOK_SECONDS))
    return Places(**{name: Path(found[name]) for name in Places.__dataclass_fields__})


def do(*arguments: str, seconds: float) -> None:
    """Run a command of devcluster and show its output."""
    try:
        run(_command(*arguments), seconds=seconds, show=True)
    except CommandFailed as error:
        if error.status != WILL_NOT_DO:
            raise
        raise SettingsError("fix what devcluster reports above, or set KUBECONFIG to a cluster of your own") from error


def cluster(at: Places) -> Cluster:
    """The cluster that devcluster has started, with its images and its S3 server."""
    images = json.loads(at.images.read_text())
    s3 = json.loads(at.s3.read_text())
    return Cluster(
        kubeconfig=str(at.kubeconfig),
        ours=True,
        kubectl=str(at.kubectl),
        helm=str(at.helm),
        images=Images(**{part: images[part]["reference"] for part in ("operator", "trainer", "sandbox")}),
        s3=S3Access(
            endpoint=s3["endpoint_in_cluster"],
            host_endpoint=s3["endpoint_on_host"],
            bucket=s3["bucket"],
            region=s3["region"],
            access_key=s3["access_key_id"],
            secret_key=s3["secret_access_key"],
        ),
    )


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "devcluster", *arguments]
