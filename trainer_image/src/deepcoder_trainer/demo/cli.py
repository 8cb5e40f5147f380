"""`deepcoder-trainer make-demo`. The code that makes the demo needs torch, so it is imported only when used."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from deepcoder_trainer.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `make-demo`."""
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to create: model/, train.jsonl, heldout.jsonl"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is made (default 0)")


def main(args: argparse.Namespace) -> int:
    """Run `make-demo`. Return 0 if the folder is complete, 64 if it exists with other content."""
    with heavy_imports():
        from deepcoder_trainer.demo.make import DemoExists, make_demo

    started = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    try:
        make_demo(args.output, args.seed, say)
    except DemoExists as error:
        say(f"deepcoder-trainer make-demo: {error}")
        return 64
    say(f"{args.output} is ready ({time.monotonic() - started:.0f} s)")
    return 0
