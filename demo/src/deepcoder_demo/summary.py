"""What came of the run: curves, the verified chain, the evaluation, one problem before and after.

The trainer's own `report` and `verify` do the work from storage, not from anything this process saw: what is shown is
what is durable. Credentials go to them by environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from deepcoder_demo.commands import run
from deepcoder_demo.settings import OUTPUT, Cluster, tool

REPORT_SECONDS = 180


def storage_environment(cluster: Cluster) -> dict[str, str]:
    """Variables with which the trainer's commands reach the bucket from here."""
    return {
        "AWS_ACCESS_KEY_ID": cluster.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key,
        "AWS_REGION": cluster.s3.region,
        "AWS_ENDPOINT_URL_S3": cluster.s3.host_endpoint,
    }


def show(cluster: Cluster, run_object: dict[str, Any], console: Console) -> Path:
    """Print the summary and draw the picture; returns the folder with both."""
    status = run_object["status"]
    storage, checkpoint = status["provenance"]["storage"], status["latestCheckpoint"]["uri"]
    environment = storage_environment(cluster)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    console.rule("[bold]What came of it", align="left")
    run(
        [tool("deepcoder-trainer"), "report", "--storage", storage, "--output", OUTPUT],
        seconds=REPORT_SECONDS, show=True, env=environment,
    )  # fmt: skip
    console.rule("[bold]The checkpoint chain, read back and verified", align="left")
    run(
        [tool("deepcoder-trainer"), "verify", checkpoint, "--deep"],
        seconds=REPORT_SECONDS, show=True, env=environment,
    )  # fmt: skip
    return OUTPUT


def farewell(cluster: Cluster, namespace: str, name: str, console: Console) -> None:
    """What to look at next."""
    console.rule("[bold]The cluster stays", align="left")
    plugin = tool("kubectl-deepcoder")
    lines = (
        f"export KUBECONFIG={cluster.kubeconfig} PATH=$PATH:{plugin.parent}:{Path(cluster.kubectl).parent}",
        f"kubectl -n {namespace} get dcr,sbp,rayjobs,pods",
        f"kubectl -n {namespace} describe dcr {name}",
        f"kubectl deepcoder status {name} -n {namespace}",
        "kubectl explain dcr.spec.recipe",
        *(("make down        # removes every trace",) if cluster.ours else ()),
    )
    for line in lines:
        console.print("  " + line, highlight=False, soft_wrap=True)
