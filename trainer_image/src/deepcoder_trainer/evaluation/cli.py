"""`deepcoder-trainer evaluate`: measures one model on problem sets, outside a run.

It measures as a run's Evaluate stage does, under the same key. Results go to `eval/<key>` in `--output-dir`. The key
covers all inputs, so results of other inputs are never overwritten. Running the same command again continues where it
stopped; if nothing is left to do, it shows the existing results and their date.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.fit import Names
from deepcoder_contracts.manifest import BY_HAND, RunIdentity
from deepcoder_contracts.recipe import Precision, Recipe
from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.stage import (
    Evaluation,
    EvaluationDataset,
    Extraction,
    JudgeBackend,
    ModelSource,
    Provenance,
    StageConfig,
    StageResources,
    StageSettings,
    StageType,
    Storage,
)
from deepcoder_trainer.config import explain, settle_options
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.options import add_judge_options, judge_endpoint

STAGE = "evaluation"
_IDENTITY = RunIdentity(namespace=BY_HAND, name="evaluate", uid="00000000-0000-0000-0000-000000000000")
_NAMES = Names(
    context_tokens="--max-length",
    max_prompt_tokens="--max-prompt-length",
    tensor_parallel="--tp",
    scaling="give --rope",
)
_OPTIONS = {
    "seed": "--seed",
    "evaluation_temperature": "--temperature",
    "evaluation_top_p": "--top-p",
    "max_prompt_tokens": "--max-prompt-length",
    "tensor_parallel": "--tp",
    "context_tokens": "--max-length",
    "samplers": "--engines",
    "samples_per_problem": "--n",
}
"""Fields whose bounds the contracts check, and the options that set them."""
_SAMPLING = {
    "max_length": 32768,
    "max_prompt_length": 2048,
    "temperature": 0.6,
    "top_p": 0.95,
    "seed": 0,
    "rope": None,
    "tp": 1,
    "engines": 1,
    "accelerators": False,
    "float32": False,
}
"""Options that say how --model is sampled, and their defaults."""
_SETTING = re.compile(r",(since|until|extraction|contests)=([^,]*)\Z")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--model", help="model: hf://org/name, s3://…, file:///… or a path")
    parser.add_argument(
        "--responses",
        nargs="+",
        metavar="NAME=FILE",
        help="the model's responses to each set, as JSON Lines or Parquet: instead of --model, of all options under "
        "'sampling' but --n, and of --tp, --engines, --accelerators and --float32",
    )
    parser.add_argument(
        "--datasets",
        required=True,
        nargs="+",
        metavar="NAME=URI[,since=DAY][,until=DAY][,contests=DIR][,extraction=RULE]",
        help="problem sets, each with a name, and optionally a period of days, standings of Codeforces contests, and "
        "how the program is extracted from a response (last-block or livecodebench)",
    )
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder for results, which go to eval/<key> below it"
    )
    parser.add_argument(
        "--again", action="store_true", help="repeat an evaluation whose result exists, and keep both results"
    )
    how = parser.add_argument_group("sampling")
    how.add_argument("--n", type=int, default=1, help="responses per problem (default 1)")
    # No defaults here: what is given with --responses would have no effect, and is refused.
    how.add_argument("--max-length", type=int, help="response limit in tokens (default 32768)")
    how.add_argument(
        "--max-prompt-length", type=int, help="skip problems with longer prompts, in tokens (default 2048)"
    )
    how.add_argument("--temperature", type=float, help="default 0.6")
    how.add_argument("--top-p", type=float, help="default 0.95")
    how.add_argument("--seed", type=int, help="default 0")
    how.add_argument("--rope", metavar="TYPE:FACTOR", help="scale rotary positions, as in Yarn:2 or Dynamic:2")
    where = parser.add_argument_group("where it runs")
    where.add_argument("--tp", type=int, help="devices per engine (default 1)")
    where.add_argument("--engines", type=int, help="number of vLLM engines that share the samples (default 1)")
    where.add_argument("--accelerators", action="store_true", default=None, help="run on GPUs")
    where.add_argument("--float32", action="store_true", default=None, help="compute in float32 instead of bfloat16")
    add_judge_options(where)


def main(options: argparse.Namespace) -> int:
    """Evaluate and print the results. Returns the exit code."""
    import asyncio

    from deepcoder_trainer.judge.local import LocalJudge

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = stage_config(options)
    responses = _named_files(options.responses or [])
    # The judge starts before anything heavy is imported or a secret is read, as in `run`.
    judge = LocalJudge(config.judge.workers) if config.judge.backend is JudgeBackend.LOCAL else None
    try:
        from rich.console import Console

        from deepcoder_trainer.checkpoint.errors import StorageError
        from deepcoder_trainer.evaluation.standalone import evaluate, stored_results
        from deepcoder_trainer.evaluation.table import render
        from deepcoder_trainer.problems.files import DatasetError
        from deepcoder_trainer.protocols import SandboxUnavailable

        try:
            done = asyncio.run(evaluate(config, judge, responses, _NAMES, again=options.again))
        except DatasetError as error:
            raise BadConfig(str(error)) from error
        except (KeyboardInterrupt, asyncio.CancelledError):
            sys.stderr.write("deepcoder-trainer evaluate: stopped; run the same command again to continue\n")
            return ExitCode.DRAINED
        except SandboxUnavailable as error:
            sys.stderr.write(f"deepcoder-trainer evaluate: {error}\nThe same command judges what is not judged yet.\n")
            return ExitCode.DRAINED
        except StorageError as error:
            sys.stderr.write(f"deepcoder-trainer evaluate: {error}\n")
            return 1
    finally:
        if judge is not None:
            judge.close()
    console = Console(highlight=False, soft_wrap=True)
    console.print(render(stored_results(config, done.key)))
    if done.found is not None:
        console.print(
            f"These results were measured at {done.found:%Y-%m-%d %H:%M:%S} UTC from the same inputs; nothing was "
            "measured now. --again measures once more and keeps both results."
        )
    console.print(f"results: {options.output_dir}/eval/{done.key}")
    return 0


def stage_config(options: argparse.Namespace) -> StageConfig:
    """Return the options as an Evaluate stage. Raises BadConfig, which names the invalid option or field."""
    from pydantic import ValidationError

    if (options.model is None) == (options.responses is None):
        raise BadConfig("give either --model, or --responses of one", field="--model")
    without_effect = "with --responses no model is sampled: give --model instead" if options.model is None else None
    settle_options(options, _SAMPLING, without_effect)
    judge = judge_endpoint(options)
    try:
        recipe = Recipe(
            seed=options.seed,
            evaluation_temperature=options.temperature,
            evaluation_top_p=options.top_p,
            max_prompt_tokens=options.max_prompt_length,
            tensor_parallel=options.tp,
            precision=Precision.FLOAT32 if options.float32 else Precision.BFLOAT16,
        )
        stage = StageSettings(
            name=STAGE,
            index=0,
            type=StageType.EVALUATE,
            context_tokens=options.max_length,
            rope=_rope(options.rope),
            resources=StageResources(samplers=options.engines, learners=0, accelerators=options.accelerators),
            evaluate=Evaluation(
                datasets=[_dataset(text) for text in options.datasets],
                samples_per_problem=options.n,
                targets=["Base"],
            ),
        )
        model = options.model or next(iter(_named_files(options.responses).values()))
        return StageConfig(
            run=_IDENTITY,
            stage=stage,
            longest_context_tokens=options.max_length,
            ordinal=1,
            model=ModelSource(uri=_uri(str(model))),
            recipe=recipe,
            storage=Storage(uri=f"file://{options.output_dir.absolute()}"),
            judge=judge,
            provenance=Provenance(config_digest=sha256_digest(recipe.to_json() + stage.to_json())),
        )
    except ValidationError as error:
        raise explain(error, _OPTIONS) from None


def _dataset(text: str) -> EvaluationDataset:
    rest, settings = text, dict[str, str]()
    while (match := _SETTING.search(rest)) is not None:
        settings[match[1]] = match[2]
        rest = rest[: match.start()]
    name, equals, uri = rest.partition("=")
    if not equals or not name or not uri:
        raise BadConfig(f"--datasets {text!r}: write NAME=URI, as in lcb=/data/lcb.jsonl", field="--datasets")
    rules = {"last-block": Extraction.LAST_BLOCK, "livecodebench": Extraction.LIVECODEBENCH}
    rule = settings.get("extraction", "last-block")
    if rule not in rules:
        raise BadConfig(f"--datasets {text!r}: extraction is one of {', '.join(rules)}", field="--datasets")
    return EvaluationDataset(
        name=name,
        uri=_uri(uri),
        since=settings.get("since"),
        until=settings.get("until"),
        contests=_uri(settings["contests"]) if "contests" in settings else None,
        extraction=rules[rule],
    )


def _named_files(texts: list[str]) -> dict[str, Path]:
    files = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise BadConfig(f"--responses {text!r}: write NAME=FILE, the set's name first", field="--responses")
        if name in files:
            raise BadConfig(f"--responses {text!r}: {name} has a file already: name each set once", field="--responses")
        files[name] = Path(path)
    return files


def _rope(text: str | None) -> RopeScaling | None:
    if text is None:
        return None
    kind, _, factor = text.partition(":")
    try:
        return RopeScaling(type=RopeType(kind.capitalize()), factor=float(factor))
    except ValueError as error:
        raise BadConfig(
            f"--rope {text!r}: write Yarn:FACTOR or Dynamic:FACTOR, a factor above 1", field="--rope"
        ) from error


def _uri(text: str) -> str:
    """Return a relative path as absolute, and a URI as it is."""
    return text if "://" in text else str(Path(text).absolute())
