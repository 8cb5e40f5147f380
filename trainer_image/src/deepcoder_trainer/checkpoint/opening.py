"""Opens the store that a URI names. Only this module knows both kinds. Raises ValueError for any other URI."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from deepcoder_contracts.stage import Storage
from deepcoder_trainer.checkpoint.storage import ObjectStore


def open_storage(uri: str, endpoint: str | None = None, region: str | None = None) -> ObjectStore:
    """Return the store whose root is `uri`: `s3://bucket/prefix` or `file:///path`. Opens no connection yet."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and not parts.netloc:
        from deepcoder_trainer.checkpoint.storage_file import FileStore

        return FileStore(Path(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        from deepcoder_trainer.checkpoint.storage_s3 import S3Store

        return S3Store(parts.netloc, parts.path.strip("/"), endpoint=endpoint, region=region)
    meant = f": write file://{uri}" if uri.startswith("/") else ""
    raise ValueError(f"storage URI {uri!r} is neither s3://bucket/prefix nor file:///path{meant}")


def open_run_storage(storage: Storage) -> ObjectStore:
    """Return the store of a stage config's `storage`."""
    return open_storage(storage.uri, storage.endpoint, storage.region)
