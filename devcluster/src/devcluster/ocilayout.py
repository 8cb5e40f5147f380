"""An OCI image layout on disk that several images share: finds what a store lacks, and removes old images.

Fails with NotInLayout for an image that is not in the layout.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from devcluster import ociarchive

_NAME = "org.opencontainers.image.ref.name"


class NotInLayout(RuntimeError):
    """The layout lacks an image that it should hold."""


def write_missing(layout: Path, reference: str, present: Collection[str], stream: IO[bytes]) -> None:
    """Write to `stream` an OCI archive of `reference` that holds only the blobs not `present` (digests)."""
    manifest = _manifest(layout, reference)
    named = {**manifest, "annotations": {"io.containerd.image.name": reference}}
    index = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        ociarchive.add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        ociarchive.add(archive, "index.json", index)
        for digest in _blobs(layout, manifest):
            if digest not in present:
                archive.add(_blob(layout, digest), f"blobs/{digest.replace(':', '/')}")


def blobs(layout: Path, reference: str) -> dict[str, Path]:
    """Files of the image by digest."""
    return {digest: _blob(layout, digest) for digest in _blobs(layout, _manifest(layout, reference))}


def references(layout: Path) -> list[str]:
    """Names of the images that the layout holds completely; none if there is no layout yet."""
    index = layout / "index.json"
    if not index.exists():
        return []
    try:
        manifests = json.loads(index.read_text())["manifests"]
    except ValueError:
        raise NotInLayout(f"{index} is incomplete. Remove {layout}; the images are then exported again") from None
    return [entry["annotations"][_NAME] for entry in manifests]


def layers(layout: Path, reference: str) -> list[Path]:
    """The image's layers, lowest first: tar archives, uncompressed as `buildah` exports them."""
    manifest = json.loads(_blob(layout, _manifest(layout, reference)["digest"]).read_bytes())
    return [_blob(layout, layer["digest"]) for layer in manifest["layers"]]


def drop(layout: Path, references: Collection[str]) -> None:
    """Remove images, and the blobs that no other image of the layout uses."""
    index_file = layout / "index.json"
    index = json.loads(index_file.read_text())
    index["manifests"] = [entry for entry in index["manifests"] if entry["annotations"][_NAME] not in references]
    making = layout / f".index.{os.getpid()}"
    making.write_text(json.dumps(index))
    making.rename(index_file)
    used = {digest for entry in index["manifests"] for digest in _blobs(layout, entry)}
    for blob in (layout / "blobs" / "sha256").iterdir():
        if f"sha256:{blob.name}" not in used:
            blob.unlink()


def _manifest(layout: Path, reference: str) -> dict[str, Any]:
    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        if entry.get("annotations", {}).get(_NAME) == reference:
            return {name: entry[name] for name in ("mediaType", "digest", "size")}
    raise NotInLayout(f"{reference} is not in {layout}. Remove that directory; the images are then exported again")


def _blobs(layout: Path, manifest: dict[str, Any]) -> list[str]:
    """Digests of the layers, the configuration and the manifest itself, in the order of their use."""
    content = json.loads(_blob(layout, manifest["digest"]).read_bytes())
    return [*(layer["digest"] for layer in content["layers"]), content["config"]["digest"], manifest["digest"]]


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
