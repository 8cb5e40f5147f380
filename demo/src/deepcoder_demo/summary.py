"""Shows the results of the run: curves, the verified chain, the evaluation, one problem before and after.

The trainer's own `report` reads them from storage, not from what this process saw, so what is shown is durable. It gets
the credentials by environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from deepcoder_demo.commands import run
from deepcoder_demo.platform import RELEASE
from deepcoder_demo.settings import CREDENTIALS_SECRET, OPERATOR_NAMESPACE, OUTPUT, Cluster, tool

REPORT_SECONDS = 180


def show(cluster: Cluster, run_object: dict[str, Any], console: Console) -> Path:
    """Print the summary and draw the picture; returns the folder with both."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    console.rule("[bold]Results", align="left")
    run(
        [
            tool("deepcoder-trainer"), "report", "--deep", "--output", OUTPUT,
            "--storage", run_object["status"]["provenance"]["storage"],
            "--endpoint", cluster.s3.host_endpoint, "--region", cluster.s3.region,
        ],
        seconds=REPORT_SECONDS,
        show=True,
        env={
            "AWS_ACCESS_KEY_ID": cluster.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key,
            "AWS_SESSION_TOKEN": cluster.s3.session_token,  # empty is none; else it would be one of the caller's
        },
    )  # fmt: skip
    return OUTPUT


def farewell(cluster: Cluster, namespace: str, name: str, console: Console) -> None:
    """Print what to look at next, and what removes what the demo has made."""
    console.rule("[bold]The cluster stays up", align="left")
    added = [tool("kubectl-deepcoder").parent, *([Path(cluster.kubectl).parent] if cluster.ours else [])]
    removal = (
        f"helm uninstall {RELEASE} -n {OPERATOR_NAMESPACE}",
        f"kubectl delete namespace {namespace} {OPERATOR_NAMESPACE}    # your S3 keys too, in {CREDENTIALS_SECRET}",
        "kubectl delete crd deepcoderruns.deepcoder.dev sandboxpools.deepcoder.dev    # with all runs of the cluster",
    )
    lines = (
        f"export KUBECONFIG={cluster.kubeconfig} PATH=$PATH:{':'.join(map(str, added))}",
        f"kubectl -n {namespace} get dcr,sbp,rayjobs,pods",
        f"kubectl -n {namespace} describe dcr {name}",
        f"kubectl deepcoder status {name} -n {namespace}",
        "kubectl explain dcr.spec.recipe",
        *(("make down        # removes every trace",) if cluster.ours else removal),
    )
    for line in lines:
        console.print("  " + line, highlight=False, soft_wrap=True)
