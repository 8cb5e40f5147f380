"""`deepcoder-trainer plan FILE`: computes what a run would need on a given number of GPUs.

The exit status is 0 if some split works with the file as it is, else 64, and the table says what to change. Nothing is
started or downloaded, and no heavy module is imported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.learner_memory import COLOCATED_SHARE, GB, checkpoint_bytes, element_bytes, export_memory
from deepcoder_contracts.model_shape import parameters
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.plan.document import read_planned
from deepcoder_trainer.plan.splits import Question, Split, changes_for_any, gigabytes, sequences, splits
from deepcoder_trainer.shapes import model_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="DeepCoderRun, LocalRun or StageConfig")
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[8, 16, 32], help="numbers of GPUs to plan for (default 8 16 32)"
    )
    parser.add_argument("--memory", type=float, default=80, help="memory of one GPU in GB, 10^9 bytes (default 80)")
    parser.add_argument(
        "--model-config", type=Path, metavar="FILE", help="config.json of the model, if the command does not know it"
    )


def main(options: argparse.Namespace) -> int:
    """Print the table. Return the exit status."""
    if options.memory <= 0:
        raise BadConfig(f"--memory {options.memory:g}: give the GB of one GPU")
    planned = read_planned(options.file)
    least = 2 if planned.trained is not None and not planned.trained.colocated else 1
    if min(options.gpus) < least:
        why = "" if least == 1 else "learners and samplers need one each (placement: Separate), "
        raise BadConfig(f"--gpus {min(options.gpus)}: {why}give {least} or more")
    question = Question(planned, model_config(planned.model.uri, options.model_config), options.memory * GB)
    found = {gpus: splits(question, gpus) for gpus in options.gpus}
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)
    common = changes_for_any(question)
    for line in [*_heading(question), *(f"to change: {change}" for change in common)]:
        console.print(line)
    console.print(_table(question, found))
    for line in _beside(question, found):
        console.print(line)
    works = not common and any(not way.changes for ways in found.values() for way in ways)
    return ExitCode.DONE if works else ExitCode.BAD_CONFIG


def _heading(question: Question) -> list[str]:
    recipe, (context, field) = question.recipe, question.planned.sampled
    lines = [f"{question.planned.model.uri}: {parameters(question.shape) / 1e9:.2f} B parameters"]
    if (trained := question.planned.trained) is not None:
        lines.append(
            f"trained on up to {recipe.max_prompt_tokens + trained.context_tokens} tokens (stages[{trained.name}]), "
            f"sequenceParallel {recipe.sequence_parallel}, activationOffload {str(recipe.activation_offload).lower()}"
        )
    sampled = f"sampled up to {recipe.max_prompt_tokens + context} tokens ({field})"
    held = f"an engine holds {sequences(question, context)} such sequences at once"
    lines.append(f"{sampled}, tensorParallel {recipe.tensor_parallel}: {held}")
    if trained is not None and trained.colocated:
        context, field = trained.longest
        held = f"holds {sequences(question, context, share=COLOCATED_SHARE)} sequences of {field} at once"
        lines.append(f"Colocated: the GPUs sample and train in turns; an engine in its turn {held}")
    return lines


def _table(question: Question, found: dict[int, list[Split]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("GPUs", "learners", "sampler GPUs", f"GB a learner of {question.memory / GB:g}"):
        table.add_column(name, justify="right")
    table.add_column("what to change")
    for gpus, ways in found.items():
        for way in ways:
            table.add_row(
                str(gpus),
                str(way.learners),
                str(way.sampler_gpus),
                gigabytes(way.memory.total) if way.memory else "-",
                "; ".join(way.changes) or "nothing: it fits",
            )
    return table


def _beside(question: Question, found: dict[int, list[Split]]) -> list[str]:
    size = checkpoint_bytes(question.shape)
    weights = element_bytes(question.recipe) * parameters(question.shape)
    if question.colocated:
        lines = ["weights go to the sampler on the same GPU, and not through the object store"]
    else:
        lines = [
            "weights go to the samplers by NCCL; with DEEPCODER_WEIGHT_TRANSFER=ObjectStore they take "
            f"{gigabytes(weights)} GB of each node's object store"
        ]
    if question.planned.trained is not None:
        parts = [size / way.learners for ways in found.values() for way in ways]
        lines.append(
            f"a checkpoint: {gigabytes(size)} GB, of which each learner copies {gigabytes(min(parts))} to "
            f"{gigabytes(max(parts))} GB to host memory, and writes them to its node's disk before it uploads them"
        )
        export = export_memory(question.shape, question.recipe)
        lines.append(
            f"when a stage ends, host memory of the first learner: {gigabytes(export.writing)} GB while its export is "
            f"written, {gigabytes(export.comparing)} GB while that is compared with its checkpoint"
        )
        host = max((way.memory.host for ways in found.values() for way in ways if way.memory), default=0.0)
        if host:
            lines.append(f"pinned host memory of each learner, for what is not on its GPU: {gigabytes(host)} GB")
    lines.append("Computed from sizes, not measured: compare memory_peak_bytes of the first step.")
    return lines
