"""The command line: `serve`, `judge` and `capacity`.

Exit status: 0 done; 1 some line of a batch has no verdict, because it was not a request or the judge itself failed (the
other lines have theirs); 64 bad usage, or the machine cannot confine or listen as requested or has too little memory
(the message says how to fix it); 74 reading or writing a batch failed; 130 interrupted; 141 the reader of the output is
gone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deepcoder_contracts.cpus import cpu_limit
from deepcoder_contracts.judge import EXIT_REFUSED, Scoring, Tier
from deepcoder_sandbox import batch, limits, pod_memory, tiers
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.server.memory_budget import QUEUED_MB
from deepcoder_sandbox.slot import RECYCLE_AFTER_RUNS
from deepcoder_sandbox.zygote_process import ZygoteConfig, package_directories

if TYPE_CHECKING:
    from deepcoder_sandbox.server.command import Serving

EXIT_USAGE, EXIT_IO, EXIT_READER_LEFT = EXIT_REFUSED, 74, 141

_CPUS = "(default: one per CPU of the container)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def run(arguments: list[str]) -> int:
    """Run a command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        serving = _serving(options) if options.command == "serve" else None
        config, findings = tiers.find_tier(_zygote_config(options), Tier(options.minimum_tier))
        if serving is not None:
            serving.run(config, findings)
            return 0
        if options.command == "capacity":
            print(findings.tier)
            for limit, held in sorted(findings.limits.items()):
                print(f"{limit:20} {'enforced' if held else 'NOT enforced'}")
            return 0
        return _batch(config, options.workers, Scoring(options.scoring) if options.scoring else None)
    except BrokenPipeError:
        return _reader_left()
    except (
        tiers.TierRefused,
        pod_memory.DoesNotFit,
        pod_memory.OwnLimitTooLow,
        _BadUsage,
        FileExistsError,
        OSError,
    ) as error:
        print(f"deepcoder-sandbox: {error}", file=sys.stderr)
        return EXIT_USAGE


def _serving(options: argparse.Namespace) -> Serving:
    from deepcoder_sandbox.server import command  # slow to import, and only `serve` needs it

    try:
        return command.Serving(options)
    except command.BadOption as error:
        raise _BadUsage(str(error)) from None


def _batch(config: ZygoteConfig, workers: int, scoring: Scoring | None) -> int:
    try:
        # Separate buffers: at exit the interpreter cannot close one on which the reading thread still waits.
        with open(1, "wb", closefd=False) as sink:  # a descriptor, not a path
            source = open(0, "rb", closefd=False)  # noqa: SIM115
            pool = Pool(config, workers, f"local-{os.getpid()}", batch.AHEAD_PER_WORKER * workers + batch.QUEUED_MORE)
            return batch.run(source, sink, pool, scoring)
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        print(f"deepcoder-sandbox: the batch was left unfinished: {error}", file=sys.stderr)
        return EXIT_IO


def _reader_left() -> int:
    """Return the status for a closed pipe, and end quietly, because `… | head` is no mistake."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # flushing the buffer at exit must not fail again
    os.close(nowhere)
    return EXIT_READER_LEFT


class _BadUsage(Exception):
    """Options are invalid or conflict."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepcoder-sandbox", description="Judge untrusted programs against tests.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    server = commands.add_parser("serve", help="serve over HTTP or a Unix socket")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces")
    server.add_argument("--port", type=_port, default=8080, help="TCP port; 0 for any free port")
    server.add_argument("--socket", type=Path, help="Unix socket (mode 0600) instead of TCP; needs no token")
    server.add_argument("--token-file", type=Path, help="file with the bearer token; required with TCP")
    server.add_argument("--slots", type=_positive, default=cpu_limit(), help=f"programs judged at once {_CPUS}")
    server.add_argument(
        "--max-queued",
        type=_positive,
        help=f"number of waiting submissions before 429 (default {limits.MAX_QUEUED_A_SLOT} per slot)",
    )
    server.add_argument(
        "--max-queued-mb",
        type=_positive,
        default=QUEUED_MB,
        help="memory for request bodies and submissions before 429, in MiB",
    )
    server.add_argument(
        "--recycle-after",
        type=_positive,
        default=RECYCLE_AFTER_RUNS,
        help="number of runs after which a zygote is replaced",
    )
    server.add_argument(
        "--max-memory-mb", type=_positive, help="largest memory_limit_mb to accept (default: what fits the container)"
    )
    server.add_argument("--max-body-mb", type=_positive, default=limits.BODY_MB, help="largest request body, in MiB")
    server.add_argument(
        "--tests-store-mb", type=_positive, default=limits.TESTS_STORE_MB, help="memory for stored test sets, in MiB"
    )
    server.add_argument(
        "--drain-seconds", type=_positive, default=30, help="time to finish accepted submissions, in seconds"
    )
    batch_parser = commands.add_parser("judge", help="judge JSON Lines from stdin to stdout")
    batch_parser.add_argument("--workers", type=_positive, default=cpu_limit(), help=f"programs judged at once {_CPUS}")
    batch_parser.add_argument(
        "--scoring", choices=[each.value for each in Scoring], help="scoring that overrides that of every line"
    )
    capacity = commands.add_parser("capacity", help="show which limits are really enforced on this machine")
    for each in (server, batch_parser, capacity):
        each.add_argument(
            "--minimum-tier",
            choices=[tier.value for tier in Tier],
            default=Tier.LANDLOCK.value,
            help="weakest isolation tier to accept",
        )
        each.add_argument(
            "--packages", action="append", default=[], metavar="DIR", help="folder of packages that programs may import"
        )
        each.add_argument(
            "--preload", action="append", default=[], metavar="MODULE", help="module to import once, for speed"
        )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("needs to be at least 1")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise argparse.ArgumentTypeError("needs to be from 0 to 65535")
    return number


def _zygote_config(options: argparse.Namespace) -> ZygoteConfig:
    try:
        return ZygoteConfig(packages=package_directories(options.packages), preload=tuple(options.preload))
    except ValueError as error:
        raise _BadUsage(f"--{error}") from None
