"""`deepcoder-trainer curate`: curates published problem sets into one for training.

It may be interrupted at any moment. Run again, it continues where it stopped, and judges no program twice.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.fit import Names
from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint, ModelSource
from deepcoder_trainer.config import settle_options
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.options import add_judge_options, judge_endpoint
from deepcoder_trainer.problems.path_metadata import EVALUATION, TRAINING

if TYPE_CHECKING:
    from deepcoder_trainer.checkpoint.sources import Sources
    from deepcoder_trainer.curation.run import Curation, Named
    from deepcoder_trainer.curation.standalone import Model, Place
    from deepcoder_trainer.judge.local import LocalJudge


_NAMES = Names(
    context_tokens="--max-length", max_prompt_tokens="--max-prompt-tokens", tensor_parallel="--tp", scaling=None
)
_OPTIONS = {
    "context_tokens": "--max-length",
    "max_prompt_tokens": "--max-prompt-tokens",
    "tensor_parallel": "--tp",
    "samplers": "--engines",
    "evaluation_temperature": "--temperature",
    "evaluation_top_p": "--top-p",
}
"""Fields whose bounds the contracts check, and the options that set them."""
_SAMPLING = {
    "samples": 8,
    "max_length": 16384,
    "temperature": 0.6,
    "top_p": 1.0,
    "seed": 0,
    "tp": 1,
    "engines": 1,
    "accelerators": False,
    "float32": False,
}
"""Options that say how --model is sampled, and their defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    sets = parser.add_argument_group("input and output")
    sets.add_argument(
        "inputs", nargs="+", metavar="NAME=URI", help="problem sets, each with a name: hf://org/name, s3://…, or a path"
    )
    sets.add_argument(
        "--output-dir", required=True, help="where the curated set and its report go: a folder, or s3://bucket/prefix"
    )
    sets.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="NAME=URI",
        help="evaluation sets that must not overlap with the result",
    )
    sets.add_argument("--split", default="train", help="name of the split in ids and in the Parquet file")
    sets.add_argument("--s3-endpoint", help="S3 endpoint URL of a server other than AWS")
    sets.add_argument("--s3-region", help="S3 region")
    keep = parser.add_argument_group("which problems to keep")
    keep.add_argument("--min-tests", type=int, default=5, help="smallest number of tests (default 5)")
    keep.add_argument("--tokenizer", metavar="MODEL", help="model whose tokenizer measures the prompts")
    keep.add_argument("--max-prompt-tokens", type=int, default=2048, help="longest prompt, in tokens (default 2048)")
    keep.add_argument("--since", type=_date, help="drop problems before this day, such as 2023-05-01")
    keep.add_argument("--until", type=_date, help="drop problems from this day on, such as 2024-08-01")
    keep.add_argument(
        "--near-duplicate", type=_share, default=0.8, help="similarity that makes a duplicate (default 0.8)"
    )
    keep.add_argument(
        "--contamination", type=_share, default=0.6, help="overlap that counts as contamination (default 0.6)"
    )
    keep.add_argument("--pass-rates", metavar="URI", help="samples of an evaluation of these problems")
    keep.add_argument(
        "--min-pass-rate", type=float, default=0.0, help="drop problems with this rate or less (default 0)"
    )
    keep.add_argument(
        "--max-pass-rate", type=float, default=1.0, help="drop problems with this rate or more (default 1)"
    )
    keep.add_argument("--max-solutions", type=int, default=8, help="official solutions to try per problem (default 8)")
    keep.add_argument("--keep-unverified", action="store_true", help="keep problems without an official solution")
    model = parser.add_argument_group("pass rates of a model, instead of --pass-rates")
    model.add_argument(
        "--model", help="model to sample: hf://org/name, s3://…, or a path; its tokenizer measures prompts"
    )
    # No defaults here: what is given without --model would have no effect, and is refused.
    model.add_argument("--samples", type=int, help="responses per problem (default 8)")
    model.add_argument("--max-length", type=int, help="response limit in tokens (default 16384)")
    model.add_argument("--temperature", type=float, help="default 0.6")
    model.add_argument("--top-p", type=float, help="default 1")
    model.add_argument("--seed", type=int, help="default 0")
    model.add_argument("--tp", type=int, help="devices per engine (default 1)")
    model.add_argument("--engines", type=int, help="number of vLLM engines (default 1)")
    model.add_argument("--accelerators", action="store_true", default=None, help="run the engines on GPUs")
    model.add_argument("--float32", action="store_true", default=None, help="compute in float32 instead of bfloat16")
    judge = parser.add_argument_group("judging")
    add_judge_options(judge)
    judge.add_argument(
        "--state-dir", type=Path, help="folder for the journal of verdicts (default: state/ in the output folder)"
    )


def main(options: argparse.Namespace) -> int:
    """Curate, and print the result. Return the exit code."""
    from deepcoder_trainer.judge.local import LocalJudge

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    without_effect = "without --model no model is sampled: give --model" if options.model is None else None
    settle_options(options, _SAMPLING, without_effect)
    endpoint = judge_endpoint(options)
    # The judge starts before anything heavy is imported or a secret is read, as in `run`.
    judge = LocalJudge(endpoint.workers) if endpoint.backend is JudgeBackend.LOCAL else None
    try:
        return _curate(options, endpoint, judge)
    finally:
        if judge is not None:
            judge.close()


def _curate(options: argparse.Namespace, endpoint: JudgeEndpoint, judge: LocalJudge | None) -> int:
    import asyncio

    from deepcoder_trainer.checkpoint.errors import StorageError
    from deepcoder_trainer.errors import SamplerLost
    from deepcoder_trainer.problems.files import DatasetError
    from deepcoder_trainer.protocols import SandboxUnavailable

    try:
        report = asyncio.run(_report(options, endpoint, judge))
    except DatasetError as error:
        raise BadConfig(str(error)) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("deepcoder-trainer curate: stopped; run the same command again to continue\n")
        return ExitCode.DRAINED
    except (StorageError, SamplerLost) as error:
        sys.stderr.write(f"deepcoder-trainer curate: {error}\n")
        return 1
    except SandboxUnavailable as error:
        sys.stderr.write(f"deepcoder-trainer curate: {error}\n")
        return ExitCode.DRAINED
    kept, read = sum(report["kept"].values()), sum(report["read"].values())
    print(f"{kept} of {read} problems are kept: {options.output_dir}/report.md says what became of the others")
    return ExitCode.DONE


async def _report(options: argparse.Namespace, endpoint: JudgeEndpoint, judge: LocalJudge | None) -> dict[str, Any]:
    """Curate and return the content of report.json. Ctrl-C and SIGTERM cancel it at any point."""
    import asyncio

    from deepcoder_trainer.background import abandonable
    from deepcoder_trainer.curation.progress import Terminal
    from deepcoder_trainer.curation.standalone import curate_by_hand
    from deepcoder_trainer.stopping import cancelled_by_signals
    from deepcoder_trainer.workdir import Workdir

    this = asyncio.current_task()
    assert this is not None, "asyncio.run makes one"
    with cancelled_by_signals(this), Workdir("curate") as scratch, Terminal() as display:
        place = _place(options, scratch)
        curation, model = await abandonable(_curation, options, place)
        return await curate_by_hand(curation, place, endpoint, judge, display, model)


def _place(options: argparse.Namespace, scratch: Path) -> Place:
    from deepcoder_trainer.checkpoint.opening import open_storage
    from deepcoder_trainer.curation.standalone import Place

    if not options.output_dir.startswith("s3://"):
        if "://" in options.output_dir:
            raise BadConfig(
                f"--output-dir {options.output_dir}: name a folder, or s3://bucket/prefix", field="--output-dir"
            )
        output = Path(options.output_dir)
        return Place(output, options.state_dir or output / "state")
    if options.state_dir is not None:
        raise BadConfig("--state-dir: an output in S3 has its journals next to it: leave it out", field="--state-dir")
    store = open_storage(options.output_dir, options.s3_endpoint, options.s3_region)
    return Place(scratch / "output", scratch / "state", store)


def _curation(options: argparse.Namespace, place: Place) -> tuple[Curation, Model | None]:
    from deepcoder_trainer.checkpoint.sources import Sources
    from deepcoder_trainer.curation.filters import Settings
    from deepcoder_trainer.curation.rates import read_pass_rates
    from deepcoder_trainer.curation.run import Curation

    _check_numbers(options)
    sources = Sources(endpoint=options.s3_endpoint, region=options.s3_region)
    tokenizer, model = None, None
    if (named := options.tokenizer or options.model) is not None:
        from deepcoder_trainer.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(sources.model(ModelSource(uri=_uri(named))))
    if options.model is not None:
        model = _model(options, sources)
    rates = None
    if options.pass_rates is not None:
        rates = read_pass_rates(sources.dataset(_uri(options.pass_rates), field="--pass-rates"))
    curation = Curation(
        inputs=_named(options.inputs, "inputs", TRAINING, sources),
        output=place.output,
        state=place.state,
        settings=Settings(
            min_tests=options.min_tests,
            max_prompt_tokens=options.max_prompt_tokens,
            since=options.since,
            until=options.until,
            near_duplicate=options.near_duplicate,
            contamination=options.contamination,
            min_pass_rate=options.min_pass_rate,
            max_pass_rate=options.max_pass_rate,
            max_solutions=options.max_solutions,
            keep_unverified=options.keep_unverified,
        ),
        evaluations=_named(options.against, "--against", EVALUATION, sources),
        tokenizer=tokenizer,
        tokenizer_uri=named,
        pass_rates=rates,
        pass_rates_uri=options.pass_rates,
        split=options.split,
    )
    return curation, model


def _check_numbers(options: argparse.Namespace) -> None:
    for option in ("min_tests", "max_prompt_tokens", "max_solutions", "samples", "max_length", "tp", "engines"):
        if getattr(options, option) < 1:
            name = f"--{option.replace('_', '-')}"
            raise BadConfig(f"{name} {getattr(options, option)}: give a number of at least 1", field=name)
    if options.since and options.until and options.since >= options.until:
        raise BadConfig(f"--since {options.since} is not before --until {options.until}: no date is between them")
    if options.min_pass_rate >= options.max_pass_rate:
        raise BadConfig(
            f"--min-pass-rate {options.min_pass_rate:g} is not below --max-pass-rate {options.max_pass_rate:g}: no "
            "rate is between them"
        )
    measured = options.model is not None or options.pass_rates is not None
    if not measured and (options.min_pass_rate > 0 or options.max_pass_rate < 1):
        raise BadConfig("--min-pass-rate and --max-pass-rate need pass rates: give --pass-rates or --model")
    if options.model is not None and options.pass_rates is not None:
        raise BadConfig("--model and --pass-rates: give one of them, a model to sample or rates measured before")


def _model(options: argparse.Namespace, sources: Sources) -> Model:
    from pydantic import ValidationError

    from deepcoder_trainer.checkpoint.modelfiles import model_digest
    from deepcoder_trainer.config import explain
    from deepcoder_trainer.curation.engine import Engines, engine_config
    from deepcoder_trainer.curation.sampling import Asked
    from deepcoder_trainer.curation.standalone import Model

    directory = sources.model(ModelSource(uri=_uri(options.model)))
    engines = Engines(options.tp, options.engines, options.accelerators, options.float32)
    asked = Asked(
        model=options.model,
        model_digest=model_digest(directory),
        precision="float32" if options.float32 else "bfloat16",
        samples=options.samples,
        max_tokens=options.max_length,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    try:
        config = engine_config(directory, engines, asked, options.max_prompt_tokens, _NAMES)
    except ValidationError as error:
        raise explain(error, _OPTIONS) from None
    return Model(directory=directory, config=config, asked=asked)


def _named(texts: list[str], option: str, splits: tuple[str, ...], sources: Sources) -> list[Named]:
    from deepcoder_trainer.curation.run import Named

    named = []
    for text in texts:
        name, equals, uri = text.partition("=")
        if not equals or not name or not uri:
            raise BadConfig(f"{option} {text!r}: write NAME=URI, as in taco=hf://likaixin/TACO-verified", field=option)
        named.append(Named(name, uri, sources.dataset(_uri(uri), field=option), splits))
    return named


def _uri(text: str) -> str:
    """Make a relative path absolute. URIs stay unchanged."""
    return text if "://" in text else str(Path(text).absolute())


def _date(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value
