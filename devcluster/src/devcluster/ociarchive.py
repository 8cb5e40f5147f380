"""Makes an image of static programs as an OCI archive that containerd imports, without a builder.

The same inputs give the same bytes: no times, no owners, files in order. Layers are not compressed, because they only
go from one file to another on the same disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

UNPRIVILEGED_USER = "65532:65532"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True)
class StaticImage:
    """An image that holds `files` (path in the image: file here) and starts `entrypoint`."""

    reference: str
    files: Mapping[str, Path]
    entrypoint: Sequence[str]
    user: str = UNPRIVILEGED_USER


def write(image: StaticImage, target: Path) -> None:
    """Write `image` to `target`, complete or not at all."""
    layer = _layer(image.files)
    layer_digest = _digest(layer)
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(image.entrypoint), "User": image.user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [{"mediaType": _LAYER, "digest": layer_digest, "size": len(layer)}],
        }
    )
    named = {**_descriptor(_MANIFEST, manifest), "annotations": {"io.containerd.image.name": image.reference}}
    making = target.with_name(f".{target.name}.{os.getpid()}")
    with tarfile.open(making, "w") as archive:
        add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        add(archive, "index.json", _json({"schemaVersion": 2, "manifests": [named]}))
        for blob in (layer, config, manifest):
            add(archive, f"blobs/{_digest(blob).replace(':', '/')}", blob)
    making.rename(target)


def add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Append one file without owner or time."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(content), mode
    archive.addfile(header, io.BytesIO(content))


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, origin in sorted(files.items()):
            add(archive, name.lstrip("/"), origin.read_bytes(), 0o755)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(kind: str, content: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}
