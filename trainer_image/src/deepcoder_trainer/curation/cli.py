"""`deepcoder-trainer curate`: from published problem sets to one that can be trained on.

It may be ended at any moment, and goes on where it stopped when it is run again: no program is judged twice.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint, ModelSource
from deepcoder_trainer.errors import BadConfig

if TYPE_CHECKING:
    from deepcoder_trainer.curation.run import Curation, Named

_DEFAULT_PORT = 8080


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    sets = parser.add_argument_group("what")
    sets.add_argument("inputs", nargs="+", metavar="NAME=URI", help="problem sets: hf://org/name, s3://…, or a path")
    sets.add_argument("--output-dir", type=Path, required=True, help="where the curated set and its report go")
    sets.add_argument(
        "--against", nargs="+", default=[], metavar="NAME=URI", help="evaluation sets that nothing may be shared with"
    )
    sets.add_argument("--split", default="train", help="name of the split in ids and in the Parquet file")
    sets.add_argument("--s3-endpoint", help="S3 server other than AWS")
    sets.add_argument("--s3-region", help="its region")
    keep = parser.add_argument_group("which problems are kept")
    keep.add_argument("--min-tests", type=int, default=5, help="fewest tests (default 5)")
    keep.add_argument("--tokenizer", metavar="MODEL", help="the model whose tokenizer measures prompts")
    keep.add_argument("--max-prompt-tokens", type=int, default=2048, help="longest prompt (default 2048)")
    keep.add_argument("--since", type=_date, help="first date, for sets that have dates: 2023-05-01")
    keep.add_argument("--until", type=_date, help="first date that is too late: 2024-08-01")
    keep.add_argument("--near-duplicate", type=_share, default=0.8, help="similarity of a duplicate (default 0.8)")
    keep.add_argument("--contamination", type=_share, default=0.6, help="overlap that contaminates (default 0.6)")
    keep.add_argument("--pass-rates", metavar="URI", help="samples of an evaluation of these problems")
    keep.add_argument("--min-pass-rate", type=float, default=0.0, help="this rate or less is dropped (default 0)")
    keep.add_argument("--max-pass-rate", type=float, default=1.0, help="this rate or more is dropped (default 1)")
    keep.add_argument("--max-solutions", type=int, default=8, help="official solutions tried (default 8)")
    keep.add_argument("--keep-unverified", action="store_true", help="keep problems without any official solution")
    judge = parser.add_argument_group("who judges")
    judge.add_argument("--judge-workers", type=int, help="programs judged at once on this machine (default: CPUs)")
    judge.add_argument("--judge", metavar="HOST[:PORT]", help="a pool's Service instead")
    judge.add_argument("--judge-token-file", help="file with the pool's bearer token")
    judge.add_argument("--state-dir", type=Path, help="journal of verdicts (default: state below the output)")


def main(options: argparse.Namespace) -> int:
    """Curate and print what came of it; the exit code."""
    from deepcoder_trainer.judge.local import LocalJudge

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    endpoint = _judge(options)
    # Before anything heavy is imported or a secret is read, as `run` does.
    judge = LocalJudge(endpoint.workers) if endpoint.backend is JudgeBackend.LOCAL else None
    try:
        return _curate(options, endpoint, judge)
    finally:
        if judge is not None:
            judge.close()


def _curate(options: argparse.Namespace, endpoint: JudgeEndpoint, judge: object) -> int:
    from deepcoder_trainer.checkpoint.errors import StorageUnavailable
    from deepcoder_trainer.curation.progress import Display
    from deepcoder_trainer.curation.run import curate
    from deepcoder_trainer.judge.local import LocalJudge
    from deepcoder_trainer.ports import SandboxUnavailable
    from deepcoder_trainer.problems.files import DatasetError

    assert judge is None or isinstance(judge, LocalJudge)
    try:
        with Display() as display:
            report = curate(_curation(options), endpoint, judge, display)
    except DatasetError as error:
        raise BadConfig(str(error)) from error
    except KeyboardInterrupt:
        sys.stderr.write("deepcoder-trainer curate: stopped; run the same command again to go on\n")
        return ExitCode.DRAINED
    except StorageUnavailable as error:
        sys.stderr.write(f"deepcoder-trainer curate: {error}\n")
        return 1
    except SandboxUnavailable as error:
        sys.stderr.write(f"deepcoder-trainer curate: {error}\n")
        return ExitCode.DRAINED
    kept, read = sum(report["kept"].values()), sum(report["read"].values())
    print(f"{kept} of {read} problems are kept: {options.output_dir}/report.md says what became of the others")
    return ExitCode.DONE


def _curation(options: argparse.Namespace) -> Curation:
    from deepcoder_trainer.checkpoint.sources import Sources
    from deepcoder_trainer.curation.filters import Settings
    from deepcoder_trainer.curation.rates import read_pass_rates
    from deepcoder_trainer.curation.run import Curation

    for option in ("min_tests", "max_prompt_tokens", "max_solutions"):
        if getattr(options, option) < 1:
            name = f"--{option.replace('_', '-')}"
            raise BadConfig(f"{name} {getattr(options, option)}: give a number of at least 1", field=name)
    if options.since and options.until and options.since >= options.until:
        raise BadConfig(f"--since {options.since} is not before --until {options.until}: no date is between them")
    sources = Sources(endpoint=options.s3_endpoint, region=options.s3_region)
    tokenizer = None
    if options.tokenizer is not None:
        from deepcoder_trainer.starting import load_tokenizer

        tokenizer = load_tokenizer(sources.model(ModelSource(uri=_uri(options.tokenizer))))
    rates = None
    if options.pass_rates is not None:
        rates = read_pass_rates(sources.dataset(_uri(options.pass_rates), field="--pass-rates"))
    return Curation(
        inputs=_named(options.inputs, "inputs", sources),
        output=options.output_dir,
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
        evaluations=_named(options.against, "--against", sources),
        tokenizer=tokenizer,
        tokenizer_uri=options.tokenizer,
        pass_rates=rates,
        pass_rates_uri=options.pass_rates,
        split=options.split,
        state=options.state_dir,
    )


def _named(texts: list[str], option: str, sources: object) -> list[Named]:
    from deepcoder_trainer.checkpoint.sources import Sources
    from deepcoder_trainer.curation.run import Named

    assert isinstance(sources, Sources)
    named = []
    for text in texts:
        name, equals, uri = text.partition("=")
        if not equals or not name or not uri:
            raise BadConfig(f"{option} {text!r}: write NAME=URI, as in taco=hf://likaixin/TACO-verified", field=option)
        named.append(Named(name, uri, sources.dataset(_uri(uri), field=option)))
    return named


def _judge(options: argparse.Namespace) -> JudgeEndpoint:
    if options.judge is None:
        return JudgeEndpoint(workers=options.judge_workers)
    if options.judge_token_file is None:
        raise BadConfig("--judge needs --judge-token-file: the file that holds the pool's token", field="--judge")
    host, _, port = options.judge.partition(":")
    if not host or not (port or str(_DEFAULT_PORT)).isdigit():
        raise BadConfig(f"--judge {options.judge!r}: write HOST or HOST:PORT", field="--judge")
    return JudgeEndpoint(
        backend=JudgeBackend.POOL, host=host, port=int(port or _DEFAULT_PORT), token_file=options.judge_token_file
    )


def _uri(text: str) -> str:
    """A path relative to here becomes absolute; URIs stay."""
    return text if "://" in text else str(Path(text).absolute())


def _date(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value
