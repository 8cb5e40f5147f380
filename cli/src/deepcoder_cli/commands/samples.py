"""`samples`: stored rollouts: prompts, responses and verdicts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.options import OfCluster, cluster, endpoint, examples, output, run_argument
from deepcoder_cli.output import document, printable, say, table
from deepcoder_cli.where import Where
from deepcoder_client.errors import NoData

COLUMNS = ("group", "index", "problem", "reward", "verdict", "finish", "tokens", "response")
_EXCERPT = 60


@click.command(
    cls=OfCluster,
    epilog=examples(
        """
kubectl deepcoder samples demo                   # the newest stored step
kubectl deepcoder samples demo --steps           # which steps are stored
kubectl deepcoder samples demo --stage 16k --step 120 --verdict wrong_answer
kubectl deepcoder samples demo --reward 1 --full --limit 1
kubectl deepcoder samples demo --problem taco-1234 -o json
"""
    ),
)
@run_argument()
@click.option("--stage", help="Stage (default: the newest with samples).")
@click.option("--step", type=click.IntRange(min=0), help="Step of the stage (default: the newest stored step).")
@click.option("--reward", type=float, help="Show only samples with this reward.")
@click.option("--verdict", help="Show only samples with this verdict: passed, wrong_answer, time_limit, …")
@click.option("--problem", help="Show only samples of this problem.")
@click.option("--dropped", is_flag=True, help="Also show samples of dropped groups, which were not trained on.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Largest number of samples to print."
)
@click.option("--full", is_flag=True, help="Print whole prompts and responses.")
@click.option("--steps", "list_steps", is_flag=True, help="List the stored steps instead.")
@endpoint
@output()
@cluster()
def samples(
    where: Where, run: str, stage: str | None, step: int | None, reward: float | None, verdict: str | None,
    problem: str | None, dropped: bool, limit: int, full: bool, list_steps: bool, endpoint: str | None, output: str,
) -> int:  # fmt: skip
    """Browse a run's rollouts by step, reward and verdict.

    Samples are stored with each checkpoint. The output of a model is printed as text, without control characters.
    """
    folder = where.client().folder(run, endpoint=endpoint)
    if list_steps:
        known = folder.sample_steps(stage)
        if output != "table":
            document([{"stage": name, "step": number} for name, number in known], output)
        else:
            table(("stage", "step"), known)
        return Exit.DONE
    every = folder.sample_table(stage, step).to_pylist()
    wanted = {"reward": reward, "verdict": verdict, "problem_id": problem}
    rows = [
        row
        for row in every
        if (dropped or not row.get("dropped")) and all(v is None or row[k] == v for k, v in wanted.items())
    ]
    if not rows:
        verdicts = ", ".join(f"{name} {count}" for name, count in Counter(r["verdict"] for r in every).most_common())
        raise NoData(f"none of the {len(every)} samples of this step matches; their verdicts: {verdicts}")
    shown = rows[:limit]
    if output != "table":
        document(shown, output)
        return Exit.DONE
    say(f"stage {shown[0]['stage']} step {shown[0]['step']}: {len(rows)} of {len(every)} samples", err=True)
    if full:
        for row in shown:
            click.echo(_whole(row))
    else:
        table(COLUMNS, (_row(row) for row in shown))
    if len(rows) > limit:
        click.echo(f"{len(rows) - limit} more: raise --limit", err=True)
    return Exit.DONE


def _row(row: dict[str, Any]) -> list[object]:
    begin = printable(" ".join(row["response"].split()))
    return [
        row["group_id"], row["index"], row["problem_id"], row["reward"], row["verdict"], row["finish"],
        row["response_tokens"], begin[:_EXCERPT] + ("…" if len(begin) > _EXCERPT else ""),
    ]  # fmt: skip


def _whole(row: dict[str, Any]) -> str:
    head = f"group {row['group_id']} index {row['index']} problem {row['problem_id']}: reward {row['reward']}, "
    head += f"{row['verdict']}, {row['response_tokens']} tokens, {row['finish']}"
    return (
        f"=== {printable(head)}\n--- prompt\n{printable(row['prompt'])}\n--- response\n{printable(row['response'])}\n"
    )
