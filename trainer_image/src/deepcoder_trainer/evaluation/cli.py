"""`deepcoder-trainer evaluate`: measure one model on problem sets, by hand.

It is a local run of one Evaluate stage, so that a number got by hand is got exactly as one in a run. Results are in
a folder of `--output-dir` that is named by all settings: other settings never overwrite them, and the same command
again goes on where it stopped, or shows what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from rich.console import Console

from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.recipe import Precision, Recipe
from deepcoder_contracts.stage import (
    Evaluation,
    EvaluationDataset,
    ModelSource,
    StageResources,
    StageType,
    Storage,
)
from deepcoder_trainer.checkpoint.storage import open_storage
from deepcoder_trainer.config import explain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.localrun import LocalRun, LocalStage

_STAGE = "evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--model", required=True, help="hf://org/name, s3://…, file:///… or a path")
    parser.add_argument(
        "--datasets", required=True, nargs="+", metavar="NAME=URI", help="problem sets, with a name each"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="where results go, in a folder for each setting")
    parser.add_argument("--n", type=int, default=1, help="responses for each problem (default 1)")
    parser.add_argument("--max-length", type=int, default=32768, help="response limit in tokens (default 32768)")
    parser.add_argument(
        "--max-prompt-length", type=int, default=2048, help="longer prompts are left out (default 2048)"
    )
    parser.add_argument("--temperature", type=float, default=0.6, help="default 0.6")
    parser.add_argument("--top-p", type=float, default=0.95, help="default 0.95")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--tp", type=int, default=1, help="devices of one engine (default 1)")
    parser.add_argument("--engines", type=int, default=1, help="vLLM engines (default 1)")
    parser.add_argument("--accelerators", action="store_true", help="run on GPUs")
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead of bfloat16")
    parser.add_argument("--judge-workers", type=int, default=None, help="programs judged at once (default: CPUs)")


def main(options: argparse.Namespace) -> int:
    """Evaluate and print; the exit code of the run."""
    from deepcoder_trainer.judge.local import LocalJudge

    config = local_run(options)
    judge = LocalJudge(options.judge_workers)  # before anything heavy is imported, as `run` does
    try:
        from deepcoder_trainer.report.cli import render
        from deepcoder_trainer.report.history import read_history
        from deepcoder_trainer.runner import run

        record = asyncio.run(run(config, judge, lambda _config: ()))
    finally:
        judge.close()
    if record.code != ExitCode.DONE:
        sys.stderr.write(f"deepcoder-trainer evaluate: {record.reason}: {record.message}\n")
        return record.code
    console = Console(highlight=False)
    console.print(render(read_history(open_storage(config.storage.uri)), [], None))
    console.print(f"results: {config.storage.uri.removeprefix('file://')}")
    return 0


def local_run(options: argparse.Namespace) -> LocalRun:
    """The command's options as a local run. Raises BadConfig naming the option or field at fault."""
    from pydantic import ValidationError

    try:
        run = LocalRun(
            name="evaluate",
            model=ModelSource(uri=_uri(options.model)),
            recipe=Recipe(
                seed=options.seed,
                evaluation_temperature=options.temperature,
                evaluation_top_p=options.top_p,
                max_prompt_tokens=options.max_prompt_length,
                tensor_parallel=options.tp,
                precision=Precision.FLOAT32 if options.float32 else Precision.BFLOAT16,
            ),
            stages=[
                LocalStage(
                    name=_STAGE,
                    type=StageType.EVALUATE,
                    context_tokens=options.max_length,
                    resources=StageResources(samplers=options.engines, learners=0, accelerators=options.accelerators),
                    evaluate=Evaluation(
                        datasets=[_dataset(text) for text in options.datasets],
                        samples_per_problem=options.n,
                        targets=["Base"],
                    ),
                )
            ],
            storage=Storage(uri=f"file://{options.output_dir.absolute()}"),
        )
    except ValidationError as error:
        raise explain(error, {}) from None
    folder = run.config_digest.removeprefix("sha256:")[:16]
    return run.model_copy(update={"storage": Storage(uri=f"{run.storage.uri}/{folder}")})


def _dataset(text: str) -> EvaluationDataset:
    name, equals, uri = text.partition("=")
    if not equals or not name or not uri:
        raise BadConfig(f"--datasets {text!r}: write NAME=URI, as in lcb=/data/lcb.jsonl", field="--datasets")
    return EvaluationDataset(name=name, uri=_uri(uri))


def _uri(text: str) -> str:
    """A path relative to here becomes absolute; URIs stay."""
    return text if "://" in text else str(Path(text).absolute())
