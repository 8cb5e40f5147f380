"""`samples`: stored rollouts: prompts, responses and verdicts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.output import document, table
from deepcoder_cli.terminal import printable, say
from deepcoder_cli.where import Where
from deepcoder_client.errors import NoData

COLUMNS = ("group", "index", "problem", "reward", "verdict", "finish", "tokens", "response")
_EXCERPT = 60


def samples(
    where: Where, run: str, stage: str | None, step: int | None, reward: float | None, verdict: str | None,
    problem: str | None, dropped: bool, limit: int, full: bool, list_steps: bool, endpoint: str | None, output: str,
) -> int:  # fmt: skip
    """Print the samples that match, or which steps have some."""
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
    else:
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
