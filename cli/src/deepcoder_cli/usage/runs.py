"""Commands that show runs, compare them, and change them."""

from __future__ import annotations

from pathlib import Path

import click

from deepcoder_cli.declared import OfCluster
from deepcoder_cli.later import Later
from deepcoder_cli.options import Number, endpoint, gpu_hour, output, run_argument
from deepcoder_client.settings import GPU_GB

WATCH_SECONDS = 30 * 86400

STATUS = OfCluster(
    "status:status",
    """
    Show runs, or one run with its stages, judges and pods.

    Parts of a run that you may not see are left out, and the output says so.
    """,
    run_argument(required=False),
    click.Option(
        ["-w", "--watch"], is_flag=True,
        help="Follow the run until it ends. The exit code is 0 if it is Complete, else 1.",
    ),
    click.Option(
        ["--timeout"], type=Number(min=0), default=WATCH_SECONDS, metavar="SECONDS",
        help="Longest time to watch (default: 30 days).",
    ),
    output(),
    all_namespaces=True,
    examples="""
kubectl deepcoder status                         # runs of the context's namespace
kubectl deepcoder status -A                      # runs of all namespaces
kubectl deepcoder status demo -n demo            # one run, its judges and its pods
kubectl deepcoder status demo -n demo --watch    # the same, live, until it ends
kubectl deepcoder status demo -o json            # the run as the API server stores it
""",
)  # fmt: skip

PLAN = OfCluster(
    "plan:plan",
    """
    Show what the runs in a file would need, without applying them.

    Shows GPUs, memory and cost of each stage. Nothing is applied, and without --server no cluster is contacted. If a
    run cannot work, the exit code is 1 and the output says what to change.
    """,
    click.Option(
        ["-f", "--filename"], type=click.Path(path_type=Path), required=True,
        help="File with runs, or - for standard input.",
    ),
    click.Option(
        ["--memory"], type=Number(min=1), default=GPU_GB, show_default=True, metavar="GB",
        help="Memory of one GPU, in 10^9 bytes.",
    ),
    click.Option(
        ["--model-config"], type=click.Path(path_type=Path), metavar="FILE",
        help="config.json of the model, if the command does not know it.",
    ),
    click.Option(
        ["--prices", "price_file"], type=click.Path(path_type=Path), metavar="FILE",
        help="Price list: prices: [{nodeSelector: {…}, perGpuHour: 2.5}], as in the chart's values.",
    ),
    gpu_hour(),
    click.Option(
        ["--step-seconds"], multiple=True, metavar="[STAGE=]SECONDS",
        help="Duration of a step. Can be repeated, once per stage.",
    ),
    click.Option(["--server", "on_server"], is_flag=True, help="Also have the API server check the run (dry run)."),
    output(),
    own="--server",
    examples="""
kubectl deepcoder plan -f deepcoder-14b.yaml
kubectl deepcoder plan -f deepcoder-14b.yaml --gpu-hour 2.5 --step-seconds 900
kubectl deepcoder plan -f run.yaml --prices prices.yaml --step-seconds 16k=600 --step-seconds 32k=1500
kubectl deepcoder plan -f run.yaml --model-config model/config.json --memory 141
kubectl deepcoder plan -f -                      # what another program writes
kubectl deepcoder plan -f run.yaml --server      # the API server checks it too, and keeps nothing
""",
)  # fmt: skip

STAGES = OfCluster(
    "stages:stages",
    """
    Show the progress and the result of each stage of a run.

    Shows phase, steps, attempts, failures and preemptions, gate, newest checkpoint and evaluation results. -o yaml also
    has all figures of the last step.
    """,
    run_argument(),
    output(),
    examples="""
kubectl deepcoder stages demo -n demo
kubectl deepcoder stages demo -o yaml
""",
)

COST = OfCluster(
    "cost:cost",
    """
    Show what runs have cost so far.

    Shows GPU hours, wasted GPU hours and cost, for one run or for all. Wasted is what attempts spent after their last
    checkpoint. The cost needs a price list: the operator's (chart value `prices`) or one given here.
    """,
    run_argument(required=False),
    click.Option(
        ["--prices", "price_file"], type=click.Path(path_type=Path), metavar="FILE",
        help="Price list instead of the operator's. Its entry without a nodeSelector applies.",
    ),
    gpu_hour(),
    output(),
    all_namespaces=True,
    examples="""
kubectl deepcoder cost demo -n demo
kubectl deepcoder cost -A -o json
kubectl deepcoder cost demo --gpu-hour 2.5       # instead of the operator's price list
""",
)  # fmt: skip

COMPARE = OfCluster(
    "compare:compare",
    """
    Compare two runs side by side.

    Shows the fields that differ, figures of the stages, evaluation results, and cost. Figures of steps come from the
    bucket; they are means over the last five steps of a stage. Without access to the bucket they are left out, and a
    note says so. Name a run of another namespace as NAMESPACE/NAME.
    """,
    run_argument("first", metavar="RUN"),
    run_argument("second", metavar="RUN"),
    endpoint(),
    output(),
    examples="""
kubectl deepcoder compare demo demo-hot
kubectl deepcoder compare ml/demo research/demo  # runs of two namespaces
kubectl deepcoder compare demo demo-hot -o json
""",
)

APPROVE = OfCluster(
    "control:approve",
    """
    Approve held stages, so that the run passes them.

    Without names, the command approves the stage at which the run is held now.
    """,
    run_argument(),
    click.Argument(["stages"], nargs=-1, shell_complete=Later("suggest:held_stages")),
    output(),
    examples="""
kubectl deepcoder approve demo                   # the stage at which the run is held
kubectl deepcoder approve demo 16k 32k           # these stages, even before the run reaches them
""",
)

SUSPEND = OfCluster(
    "control:suspend",
    """
    Save a run's state and remove its pods.

    `resume` continues from the saved state. With --wait, the exit code is 1 if the run ended instead.
    """,
    run_argument(),
    click.Option(["--wait"], is_flag=True, help="Wait until the run's pods are gone."),
    click.Option(
        ["--timeout"], type=Number(min=0), default=900.0, show_default=True, metavar="SECONDS", help="Longest wait."
    ),
    output(),
    examples="""
kubectl deepcoder suspend demo
kubectl deepcoder suspend demo --wait --timeout 600
""",
)

RESUME = OfCluster(
    "control:resume",
    "Resume a suspended run from its newest checkpoint.",
    run_argument(),
    output(),
    examples="kubectl deepcoder resume demo",
)
