"""Commands that show what a run has printed and stored."""

from __future__ import annotations

import click

from deepcoder_cli.declared import OfCluster
from deepcoder_cli.options import endpoint, output, run_argument

LOGS = OfCluster(
    "logs:logs",
    """
    Print the logs of a run, or of its past attempts.

    PART is driver (the trainer itself, the default), head, samplers, learners or judge.

    The live driver's log is read inside the head pod, for which you need to get and create pods/exec. The log of an
    attempt that is over is in the bucket: use --attempt N.
    """,
    run_argument(),
    click.Argument(
        ["part"], type=click.Choice(["driver", "head", "samplers", "learners", "judge"]), default="driver"
    ),
    click.Option(["-f", "--follow"], is_flag=True, help="Follow the output until the pods end."),
    click.Option(
        ["--tail"], type=click.IntRange(min=0), default=1000, show_default=True,
        help="Number of last lines of each pod.",
    ),
    click.Option(["--attempts"], is_flag=True, help="List the attempts, how they ended, and their files."),
    click.Option(["--attempt"], type=click.IntRange(min=1), metavar="N", help="A past attempt, from the bucket."),
    click.Option(["--file", "name"], metavar="NAME", help="File of the past attempt (default: driver.log)."),
    endpoint(),
    output(),
    examples="""
kubectl deepcoder logs demo                      # what the trainer prints
kubectl deepcoder logs demo -f                   # the same, as it comes
kubectl deepcoder logs demo samplers --tail 100
kubectl deepcoder logs demo judge -f
kubectl deepcoder logs demo --attempts           # what past attempts have left
kubectl deepcoder logs demo --attempt 2          # the trainer's log of attempt 2, from the bucket
kubectl deepcoder logs demo --attempt 2 --file events.json
""",
)  # fmt: skip

SAMPLES = OfCluster(
    "samples:samples",
    """
    Browse a run's rollouts by step, reward and verdict.

    Samples are stored with each checkpoint. The output of a model is printed as text, without control characters.
    """,
    run_argument(),
    click.Option(["--stage"], help="Stage (default: the newest with samples)."),
    click.Option(
        ["--step"], type=click.IntRange(min=0), help="Step of the stage (default: the newest stored step)."
    ),
    click.Option(["--reward"], type=float, help="Show only samples with this reward."),
    click.Option(["--verdict"], help="Show only samples with this verdict: passed, wrong_answer, time_limit, …"),
    click.Option(["--problem"], help="Show only samples of this problem."),
    click.Option(
        ["--dropped"], is_flag=True, help="Also show samples of dropped groups, which were not trained on."
    ),
    click.Option(
        ["--limit"], type=click.IntRange(min=1), default=20, show_default=True,
        help="Largest number of samples to print.",
    ),
    click.Option(["--full"], is_flag=True, help="Print whole prompts and responses."),
    click.Option(["--steps", "list_steps"], is_flag=True, help="List the stored steps instead."),
    endpoint(),
    output(),
    examples="""
kubectl deepcoder samples demo                   # the newest stored step
kubectl deepcoder samples demo --steps           # which steps are stored
kubectl deepcoder samples demo --stage 16k --step 120 --verdict wrong_answer
kubectl deepcoder samples demo --reward 1 --full --limit 1
kubectl deepcoder samples demo --problem taco-1234 -o json
""",
)  # fmt: skip

LINEAGE = OfCluster(
    "lineage:lineage",
    """
    Show what a model was made from, link by link.

    Each link is verified, its files by size and checksum. The exit code is 1 if a link is broken.
    """,
    run_argument(),
    click.Option(
        ["--uri"], help="Folder of a checkpoint, an export or an evaluation (default: the newest checkpoint)."
    ),
    endpoint(),
    output(),
    examples="""
kubectl deepcoder lineage demo                   # from the newest checkpoint to the base model
kubectl deepcoder lineage demo --uri s3://bucket/ml/demo-0f0e0d0c/16k/export/step-000180.a003
""",
)

VERIFY = OfCluster(
    "lineage:verify",
    """
    Verify a run's checkpoints and the chains they come from.

    Checks the checkpoint of every stage against the digest in the run's status. The exit code is 1 if anything
    differs.
    """,
    run_argument(),
    click.Option(["--deep"], is_flag=True, help="Read every file and check its SHA-256."),
    endpoint(),
    output(),
    examples="""
kubectl deepcoder verify demo
kubectl deepcoder verify demo --deep             # every byte is read and hashed
""",
)
