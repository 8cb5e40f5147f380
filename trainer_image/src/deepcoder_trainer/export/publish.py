"""Publishes an export's files to a local folder or to S3, with a manifest as the commit.

The manifest names its source as parent, so that `verify` can walk from here to the root, and `fetch` checks the files
against it. A local folder appears complete, by a rename. On S3 a claim is put first and the manifest last, because
files have the names under which they are served, and two exports to one place would mix. Existing files are never
overwritten. If an export cannot be published completely, its files are removed. A killed process leaves its claim, and
the place then counts as taken.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, ParentRef
from deepcoder_trainer.checkpoint.code import code_digest, versions
from deepcoder_trainer.checkpoint.errors import ObjectExists, StorageError
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore, file_sha256
from deepcoder_trainer.checkpoint.transfer import put_new, upload_files
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export.source import Place

_CLAIM = ".claim"

log = logging.getLogger(__name__)


def check_free(output: str, endpoint: str | None, region: str | None) -> None:
    """Raise `BadConfig` if something exists at `output`, a URI, before minutes are spent on the export."""
    local = local_path(output)
    if local is None and not urlsplit(output).path.strip("/"):
        raise BadConfig(f"--output {output} is a whole bucket: name a folder in it", field="--output")
    taken = local.exists() if local else bool(open_storage(output, endpoint, region).list(""))
    if taken:
        raise BadConfig(f"--output {output} exists: choose another place, or remove it", field="--output")


def local_path(uri: str) -> Path | None:
    """Return the path of a file:// URI; None for others."""
    parts = urlsplit(uri)
    return Path(parts.path) if parts.scheme == "file" else None


def publish(
    staging: Path, output: str, place: Place, figures: Mapping[str, float], endpoint: str | None, region: str | None
) -> ParentRef:
    """Move or upload the files in `staging`, and commit them. Raises `BadConfig` if the output was taken meanwhile."""
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    target = local_path(output)
    if target is not None:
        entries = [
            FileEntry(path=f.relative_to(staging).as_posix(), size=f.stat().st_size, sha256=file_sha256(f))
            for f in files
        ]
        data = _manifest(place, figures, entries).to_json()
        (staging / MANIFEST).write_bytes(data)
        try:
            staging.chmod(0o755)
            staging.rename(target)
        except OSError as error:
            raise BadConfig(f"--output {output} appeared meanwhile ({error.strerror})", field="--output") from error
    else:
        store = open_storage(output, endpoint, region)
        with _claimed(output, endpoint, region):
            data = _manifest(place, figures, upload_files(store, "", staging, files)).to_json()
            put_new(store, MANIFEST, data)
    return ParentRef(uri=output, digest=sha256_digest(data))


@contextlib.contextmanager
def _claimed(output: str, endpoint: str | None, region: str | None) -> Iterator[None]:
    """Claim a place in S3 for this process; if the block raises, what was put there is deleted. Raises `BadConfig` if
    another export is being written there, or was."""
    above, _, name = output.rstrip("/").rpartition("/")
    store = open_storage(above, endpoint, region)
    claim = f"{name}/{_CLAIM}/{_CLAIM}"
    try:
        store.put_bytes(claim, uuid.uuid4().bytes, if_absent=True)
    except ObjectExists as error:
        raise BadConfig(f"--output {output} is being written by another export", field="--output") from error
    # Until the place is known to be empty, all but the claim may be another export, which releases its claim once it is
    # complete.
    partly_ours = False
    try:
        if any(found.key != claim for found in store.list(f"{name}/")):
            raise BadConfig(f"--output {output} was written meanwhile", field="--output")
        partly_ours = True
        yield
        partly_ours = False
    finally:
        _clear(store, f"{name}/" if partly_ours else f"{name}/{_CLAIM}/")


def _clear(store: ObjectStore, prefix: str) -> None:
    try:
        store.delete_prefix(prefix)
    except StorageError as error:
        log.warning("%s/%s is left behind: %s", store.uri, prefix, error)


def _manifest(place: Place, figures: Mapping[str, float], files: list[FileEntry]) -> Manifest:
    return place.manifest.model_copy(
        update={
            "kind": ManifestKind.EXPORT,
            "parent": place.ref,
            "metrics": dict(place.manifest.metrics) | dict(figures),
            "created_at": datetime.now(UTC),
            "code_digest": code_digest(),
            "versions": versions(),
            "files": files,
        }
    )
