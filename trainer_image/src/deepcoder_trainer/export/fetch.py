"""`deepcoder-trainer fetch URI DIRECTORY`: downloads an export and checks each file against its manifest.

The init container of a serving pod runs this. With `--digest`, the manifest must have that digest, so that somebody who
can write to the bucket cannot change what is served. The manifest is written last, when all files are checked. Files
that are already in the folder (from an interrupted fetch, or from another export) are hashed and downloaded again if
they differ. A file that the manifest does not list is refused, because whoever loads the folder might load it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import Manifest, ManifestKind
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing, StorageError
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import parse_manifest
from deepcoder_trainer.checkpoint.transfer import download_files
from deepcoder_trainer.checkpoint.verify import unlisted_files
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export.source import as_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("uri", help="folder of an export: s3://…, file://… or a path")
    parser.add_argument("directory", type=Path, help="folder for the files")
    parser.add_argument("--digest", help="expected digest of the export's manifest, sha256:…")
    parser.add_argument("--endpoint", help="S3 endpoint URL of a server other than AWS")
    parser.add_argument("--region", help="S3 region")


def main(options: argparse.Namespace) -> int:
    """Download. Returns 1 if files are missing or do not match the manifest."""
    uri = as_uri(options.uri, "uri").rstrip("/")
    try:
        store = open_storage(uri, options.endpoint or None, options.region or None)  # a manifest's may be empty
        data = store.get_bytes(MANIFEST)  # once: what is checked is what is kept
        manifest, digest = parse_manifest(data, uri), sha256_digest(data)
        if options.digest is not None and digest != options.digest:
            raise CheckpointDamaged(f"{uri} has digest {digest}, --digest says {options.digest}: it is another export")
        if manifest.kind is not ManifestKind.EXPORT:
            raise BadConfig(f"{uri} is an {manifest.kind.value}: name an export, or make one of it first", field="uri")
        _make_ready(options.directory, manifest, data)
        download_files(store, "", options.directory, manifest.files, check_present=True)
        (options.directory / MANIFEST).write_bytes(data)
    except ObjectMissing:
        raise BadConfig(f"{uri} has no {MANIFEST}: name the folder of an export", field="uri") from None
    except (CheckpointDamaged, StorageError) as error:
        sys.stderr.write(f"deepcoder-trainer fetch: {error}\n")
        return 1
    size = sum(entry.size for entry in manifest.files)
    sys.stdout.write(f"{options.directory}: {len(manifest.files)} files, {size:,} bytes, checked; manifest {digest}\n")
    return 0


def _make_ready(directory: Path, manifest: Manifest, data: bytes) -> None:
    """Refuse unknown files, and remove the manifest of another export, because it describes only that one's files."""
    if unlisted := unlisted_files(directory, manifest):
        raise BadConfig(
            f"{directory} holds {len(unlisted)} files that the export does not have ({', '.join(unlisted[:3])}): "
            "remove them, or name another folder",
            field="directory",
        )
    kept = directory / MANIFEST
    if kept.exists() and kept.read_bytes() != data:
        kept.unlink()
