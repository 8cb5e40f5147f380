"""Where programs are judged, as commands by hand are told it: here, or by a pool's Service.

A pool is told by its host and the file of its token; what cannot be used is `BadConfig` by the option's name.
"""

from __future__ import annotations

import argparse

from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint
from deepcoder_trainer.errors import BadConfig

_DEFAULT_PORT = 8080


def add_judge_options(group: argparse._ArgumentGroup) -> None:
    """`--judge-workers`, `--judge` and `--judge-token-file`."""
    group.add_argument(
        "--judge-workers", type=int, help="programs judged at once on this machine (default: number of CPUs)"
    )
    group.add_argument("--judge", metavar="HOST[:PORT]", help="use the judges behind this pool's Service instead")
    group.add_argument("--judge-token-file", help="file with the pool's bearer token")


def judge_endpoint(options: argparse.Namespace) -> JudgeEndpoint:
    """What they say; raises `BadConfig`."""
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
