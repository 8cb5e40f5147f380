"""`deepcoder-operator`: run the operator, write the CRDs, verify a chain of checkpoints, release runs.

    deepcoder-operator run [--config FILE] [--log-level LEVEL]
    deepcoder-operator crds --output DIR [--output DIR] [--check]
    deepcoder-operator verify [--deep] [--digest sha256:HEX] [--endpoint URL] [--region NAME] s3://bucket/…/<stage>/step-000120.a003
    deepcoder-operator release [--config FILE] [--take-lease]

`verify` reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN from the environment. Use `release` when
no operator is running any more: it removes the finalizer from all runs, so that they can be deleted. Exit codes: 0
done, 1 drift or damage found, or runs that could not be released, 2 wrong usage, 64 bad configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from deepcoder_operator import VERSION

RECURSION_LIMIT = 25_000
"""The API server accepts objects nested up to 10,000 levels deep, and a run's or a pool's template may hold anything.
Reading an object takes one call per level, and copying it two. At Python's default of 1000, a single object would end
the process, and again after each restart. 10,000 levels take less than 2 MiB of stack."""


def main() -> None:
    """Entry point."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="deepcoder-operator", description=__doc__, formatter_class=raw)
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the operator")
    run.add_argument("--config", type=Path, help="YAML file; default: built-in defaults")
    run.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    crds = commands.add_parser("crds", help="write the CustomResourceDefinitions")
    crds.add_argument("--output", type=Path, required=True, action="append", help="folder; may be repeated")
    crds.add_argument("--check", action="store_true", help="write nothing; fail if the files in the folder differ")
    verify = commands.add_parser("verify", help="verify a checkpoint or export and the chain it comes from")
    verify.add_argument("uri", help="s3://bucket/key of the folder with MANIFEST.json")
    verify.add_argument("--deep", action="store_true", help="read every byte and check SHA-256")
    verify.add_argument("--digest", help="expected digest of MANIFEST.json, from status.latestCheckpoint")
    verify.add_argument("--endpoint", help="S3 endpoint URL of a server other than AWS")
    verify.add_argument("--region", help="S3 region")
    release = commands.add_parser("release", help="remove the finalizer from all runs, once no operator is running")
    release.add_argument("--config", type=Path, help="YAML file with the namespaces; default: all namespaces")
    release.add_argument(
        "--take-lease",
        action="store_true",
        help="first stop the operator of this configuration, until half a minute after the command",
    )
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            sys.exit(_run(arguments))
        case "crds":
            sys.exit(_crds(arguments.output, check=arguments.check))
        case "verify":
            sys.exit(_verify(arguments))
        case "release":
            sys.exit(_release(arguments.config, take_lease=arguments.take_lease))


def _run(arguments: argparse.Namespace) -> int:
    from deepcoder_operator import logs
    from deepcoder_operator.app import run_operator
    from deepcoder_operator.config import ConfigError, load_config
    from deepcoder_operator.kube.errors import NoAccess

    logs.configure(arguments.log_level)
    sys.setrecursionlimit(RECURSION_LIMIT)
    try:
        asyncio.run(run_operator(load_config(arguments.config)))
    except (ConfigError, NoAccess) as e:
        print(f"deepcoder-operator: {e}", file=sys.stderr)
        return 64
    return 0


def _release(path: Path | None, *, take_lease: bool) -> int:
    from deepcoder_operator import logs
    from deepcoder_operator.config import ConfigError, OperatorConfig, load_config
    from deepcoder_operator.kube.client import Kube
    from deepcoder_operator.kube.errors import KubeError, NoAccess
    from deepcoder_operator.release import let_operator_follow, release_runs, stop_operator

    async def run(config: OperatorConfig) -> list[str]:
        kube = await Kube.connect()
        try:
            if take_lease:
                await stop_operator(kube, config)
            kept = await release_runs(kube, config.watch_namespaces)
            if take_lease:
                await let_operator_follow(kube, config)
            return kept
        finally:
            await kube.close()

    logs.configure("info")
    sys.setrecursionlimit(RECURSION_LIMIT)
    try:
        kept = asyncio.run(run(load_config(path)))
    except (ConfigError, NoAccess) as e:
        print(f"deepcoder-operator: {e}", file=sys.stderr)
        return 64
    except KubeError as e:
        print(f"deepcoder-operator: the operator's Lease cannot be taken: {e}", file=sys.stderr)
        return 1
    for problem in kept:
        print(f"deepcoder-operator: not released: {problem}", file=sys.stderr)
    return 1 if kept else 0


def _crds(folders: list[Path], *, check: bool) -> int:
    from deepcoder_operator.crds import crd_files

    made = crd_files()
    files = {folder / name: text for folder in folders for name, text in made.items()}
    if check:
        drifted = [str(p) for p, text in files.items() if not p.exists() or p.read_text() != text]
        if drifted:
            print(f"{', '.join(drifted)}: out of date, run the same command without --check", file=sys.stderr)
        return 1 if drifted else 0
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from deepcoder_contracts.chain import Damaged, Missing, walk_chain
    from deepcoder_operator.storage.s3 import Buckets, Credentials, StorageProblem, Target

    bucket, _, folder = arguments.uri.removeprefix("s3://").partition("/")
    if not arguments.uri.startswith("s3://") or not folder:
        print(
            f"deepcoder-operator: {arguments.uri}: give s3://bucket/key of a folder with MANIFEST.json", file=sys.stderr
        )
        return 2
    try:
        access, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    except KeyError as e:
        print(f"deepcoder-operator: {e.args[0]} is not set", file=sys.stderr)
        return 2
    bundle = os.environ.get("AWS_CA_BUNDLE")
    try:
        authority = Path(bundle).read_text() if bundle else None
    except (OSError, UnicodeDecodeError) as e:
        print(f"deepcoder-operator: AWS_CA_BUNDLE {bundle} cannot be read: {e}", file=sys.stderr)
        return 2
    credentials = Credentials(access, secret, os.environ.get("AWS_SESSION_TOKEN"), authority, "environment")
    try:
        opened = Buckets().open(Target(arguments.endpoint, arguments.region, credentials), bucket)
        for link in walk_chain(opened, folder.rstrip("/"), arguments.digest, deep=arguments.deep):
            manifest = link.manifest
            pruned = " (payload pruned)" if link.pruned else ""
            print(f"ok  {manifest.kind:<10} {manifest.stage} step {manifest.step} attempt {manifest.ordinal}  "
                  f"{link.digest}  {link.uri}{pruned}")  # fmt: skip
            if manifest.image_id or manifest.accelerator:
                print(f"    {manifest.image_id or manifest.image} on {manifest.accelerator or 'unknown devices'}")
    except (Damaged, Missing) as e:
        print(f"BAD {e}", file=sys.stderr)
        return 1
    except StorageProblem as e:
        print(f"deepcoder-operator: {e.problem.reason}: {e.problem.message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    main()
