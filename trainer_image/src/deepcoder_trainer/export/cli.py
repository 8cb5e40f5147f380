"""`deepcoder-trainer export`: exports a trained model for serving, with a card that states its origin."""

from __future__ import annotations

import argparse
import os
import re
import sys

from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, StorageError
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export.errors import ExportFailed
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.export.source import as_uri
from deepcoder_trainer.heavy_imports import heavy_imports
from deepcoder_trainer.modelcard import rounding_note

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}\Z")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--source", required=True, help="checkpoint, export or run's folder: s3://…, file://… or a path"
    )
    parser.add_argument(
        "--output", required=True, help="folder to create, or s3://bucket/prefix; nothing may exist there yet"
    )
    parser.add_argument(
        "--format", type=Format, choices=list(Format), default=Format.HUGGINGFACE, help="default: huggingface"
    )
    parser.add_argument(
        "--rope", type=int, metavar="TOKENS", help="scale positions with YaRN to reach this many tokens"
    )
    parser.add_argument(
        "--rope-original",
        type=int,
        metavar="TOKENS",
        help="positions that the model was trained for, if config.json says more",
    )
    parser.add_argument("--float32", action="store_true", help="keep float32 instead of writing bfloat16")
    parser.add_argument(
        "--any-difference", action="store_true", help="publish even if the logits differ from the source's"
    )
    parser.add_argument("--shard-bytes", type=int, help="approximate size of a weight file in bytes (default 2 GiB)")
    parser.add_argument("--name", help="name of the model (default: RUN-STAGE-step-N)")
    parser.add_argument("--endpoint", help="S3 endpoint URL of a server other than AWS")
    parser.add_argument("--region", help="S3 region")


def main(options: argparse.Namespace) -> int:
    """Export and print the result. Returns 1 if the source cannot be trusted or the export cannot be made."""
    # Threads that spin at barriers starve each other where processes share cores; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with heavy_imports():
        from deepcoder_trainer.export.run import Order, export

    if options.rope_original is not None and options.rope is None:
        raise BadConfig("--rope-original says what --rope scales: give --rope, too", field="--rope-original")
    if options.name is not None and not _NAME.match(options.name):
        raise BadConfig(
            f"--name {options.name}: it becomes a file's name: give letters, digits, '.', '_' and '-', and no folder",
            field="--name",
        )
    if options.shard_bytes is not None and options.shard_bytes < 1:
        raise BadConfig(f"--shard-bytes {options.shard_bytes}: give a number above 0", field="--shard-bytes")
    precision = Precision.FLOAT32 if options.float32 else Precision.BFLOAT16
    settings = {} if options.shard_bytes is None else {"shard_bytes": options.shard_bytes}
    try:
        done = export(
            Order(
                source=as_uri(options.source, "--source"),
                output=as_uri(options.output, "--output").rstrip("/"),
                form=options.format,
                precision=precision,
                rope=options.rope,
                rope_original=options.rope_original,
                any_difference=options.any_difference,
                name=options.name,
                endpoint=options.endpoint,
                region=options.region,
                sources=Sources(endpoint=options.endpoint, region=options.region),
                **settings,
            ),
            lambda text: print(text, file=sys.stderr),
        )
    except (ExportFailed, CheckpointDamaged, StorageError) as error:
        sys.stderr.write(f"deepcoder-trainer export: {error}\n")
        return 1
    found = done.difference
    print(f"{done.ref.uri} {done.ref.digest}")
    print(
        f"logits differ from the source's by at most {found.max_abs:.3g}, mean KL {found.mean_kl:.3g} nats, same "
        f"likeliest token {100 * found.top1:.2f} % ({found.positions} positions)"
    )
    if found.rounding:
        print(rounding_note("source", precision.dtype))
    return 0
