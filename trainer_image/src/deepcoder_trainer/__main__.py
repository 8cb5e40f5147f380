"""The command line: `run`, `drain`, `verify`, `curate`, `evaluate`, `export`, `fetch`, `report`, `plan`, `make-demo`.

Exit status 0 means done, 64 bad configuration or usage, 75 stopped on request or for want of judges (run again to
continue), anything else a crash. Only what a command needs is imported, and nothing heavy before its input is valid.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_contracts.stage import JudgeBackend
from deepcoder_trainer.errors import BadConfig

if TYPE_CHECKING:
    from deepcoder_contracts.stage import StageConfig
    from deepcoder_trainer.judge.local import LocalJudge
    from deepcoder_trainer.localrun import LocalRun
    from deepcoder_trainer.protocols import Observer

_COMMANDS = {
    "drain": ("deepcoder_trainer.running.drain", "tell a running trainer to save and exit"),
    "verify": ("deepcoder_trainer.checkpoint.cli", "walk a checkpoint's lineage and check every link"),
    "curate": ("deepcoder_trainer.curation.cli", "make a training set from published problem sets"),
    "evaluate": ("deepcoder_trainer.evaluation.cli", "measure a model on problem sets"),
    "compare-evals": ("deepcoder_trainer.evaluation.compare", "compare two evaluations, with a paired test"),
    "export": ("deepcoder_trainer.export.cli", "write a trained model for vLLM or llama.cpp, with its provenance"),
    "fetch": ("deepcoder_trainer.export.fetch", "download an export and check every file, as a serving pod does"),
    "report": ("deepcoder_trainer.report.cli", "show the results of a run: curves, evaluations, lineage"),
    "plan": ("deepcoder_trainer.plan.cli", "check whether a run fits a number of GPUs, and what to change"),
    "make-demo": ("deepcoder_trainer.demo.cli", "make the demo's problems, tokenizer and warm-started model"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(ExitCode.BAD_CONFIG, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _Parser(prog="deepcoder-trainer", description="GRPO+ training of code models.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    run = commands.add_parser("run", help="run a stage or a whole local run")
    run.add_argument("--config", type=Path, required=True, help="StageConfig or LocalRun, JSON or YAML")
    run.add_argument("--verbose", action="store_true", help="log everything")
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if arguments and arguments[0] == name:
            importlib.import_module(module).add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            return _run(options)
        return int(importlib.import_module(_COMMANDS[options.command][0]).main(options))
    except BadConfig as error:
        sys.stderr.write(f"deepcoder-trainer {options.command}: {error}\n")
        return ExitCode.BAD_CONFIG
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the folder of its output, or of its temporary files (TMPDIR)"
        sys.stderr.write(f"deepcoder-trainer {options.command}: {error.strerror}: free space in {where}\n")
        _leave_output_unwritten()
        return 1


def _leave_output_unwritten() -> None:
    """Redirect stdout to /dev/null: otherwise the interpreter flushes it again at exit and reports that error, too."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(options: argparse.Namespace) -> int:
    from deepcoder_contracts.stage import StageConfig
    from deepcoder_trainer.cluster import in_cluster
    from deepcoder_trainer.config import load_config
    from deepcoder_trainer.running.driverlog import save_at_the_end
    from deepcoder_trainer.running.process_exit import run_last_at_exit

    run_last_at_exit()
    _log(verbose=options.verbose)
    config = load_config(options.config)
    if isinstance(config, StageConfig) and in_cluster():
        save_at_the_end(options.config)
    judge = None
    if _asks_a_local_judge(config):
        from deepcoder_trainer.judge.local import LocalJudge

        judge = LocalJudge(config.judge.workers)
    try:
        record = _run_to_its_end(config, judge)
    finally:
        if judge is not None:
            judge.close()
    sys.stderr.write(f"deepcoder-trainer run: {record.reason}{': ' if record.message else ''}{record.message}\n")
    return record.code


def _asks_a_local_judge(config: StageConfig | LocalRun) -> bool:
    """Whether to start a judge on this machine.

    Whether a custom reward needs a judge is known only when it is imported, and the judge starts before that. So a
    local run always has one.
    """
    from deepcoder_trainer.localrun import LocalRun

    if config.judge.backend is not JudgeBackend.LOCAL:
        return False
    curates = config.dataset is not None and config.dataset.curation is not None
    return config.recipe.reward is None or curates or isinstance(config, LocalRun)


def _run_to_its_end(config: StageConfig | LocalRun, judge: LocalJudge | None) -> ExitRecord:
    import asyncio

    from deepcoder_trainer.cluster import in_cluster
    from deepcoder_trainer.running.runner import run
    from deepcoder_trainer.telemetry.observers import Console

    # Threads that spin at barriers starve each other if processes share cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty() or in_cluster():
        return asyncio.run(run(config, judge, lambda stage: (Console(stage.stage.name, stage.stage.max_steps),)))
    from deepcoder_trainer.telemetry.live import LiveView

    with LiveView() as view:

        def observe(stage: StageConfig) -> tuple[Observer, ...]:
            view.begin(stage)
            return (view,)

        return asyncio.run(run(config, judge, observe))


def _log(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("httpx", "httpcore", "aiohttp", "asyncio", "urllib3", "botocore", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
