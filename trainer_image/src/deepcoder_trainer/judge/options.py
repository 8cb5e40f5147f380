"""Command-line options that say where programs are judged: here, or by a pool's Service.

A pool is given by its host and the file with its token. Invalid values raise `BadConfig` with the option's name.
"""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint
from deepcoder_trainer.errors import BadConfig

_DEFAULT_PORT = 8080


def add_judge_options(group: argparse._ArgumentGroup) -> None:
    """Add the options `--judge-workers`, `--judge` and `--judge-token-file`."""
    group.add_argument(
        "--judge-workers", type=int, help="programs judged at once on this machine (default: number of CPUs)"
    )
    group.add_argument("--judge", metavar="HOST[:PORT]", help="use the judges behind this pool's Service instead")
    group.add_argument("--judge-token-file", help="file with the pool's bearer token")


def judge_endpoint(options: argparse.Namespace) -> JudgeEndpoint:
    """Return the judge settings from the options; raises `BadConfig`."""
    if options.judge is None:
        if options.judge_workers is not None and options.judge_workers < 1:
            raise BadConfig(f"--judge-workers {options.judge_workers}: give 1 or more", field="--judge-workers")
        return JudgeEndpoint(workers=options.judge_workers)
    if options.judge_token_file is None:
        raise BadConfig("--judge needs --judge-token-file: the file that holds the pool's token", field="--judge")
    try:
        parts = urlsplit(f"//{options.judge}")
        host, port = parts.hostname, _DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:  # no port, or no address in brackets
        host, port = None, 0
    if not host or not port or parts.netloc != options.judge or parts.username is not None:
        raise BadConfig(
            f"--judge {options.judge!r}: write HOST, HOST:PORT or, of an IPv6 address, [ADDRESS]:PORT", field="--judge"
        )
    return JudgeEndpoint(backend=JudgeBackend.POOL, host=host, port=port, token_file=options.judge_token_file)
