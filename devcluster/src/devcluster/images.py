"""Builds the project's images and loads them into the cluster. The tag of each is the hash of its inputs.

The inputs of an image are the files that its Dockerfile copies, the Dockerfile, the base image and the local wheels. An
image that exists under that tag is neither built nor loaded again. From buildah's storage an image goes into an OCI
layout, and only the blobs that the cluster lacks are sent: a code change moves kilobytes, not the layer of gigabytes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import content_hash, dockerfile, ocilayout, systemimages, wheels
from devcluster.artifacts import Artifacts
from devcluster.buildah import Buildah
from devcluster.config import DOCKERFILES, IMAGE_PREFIX, REPOSITORY, Cluster, ConfigError
from devcluster.containerd import ImageStore
from devcluster.file_lock import exclusive
from devcluster.lifecycle import running_or_fail
from devcluster.node import NodeError
from devcluster.progress import step

_WHEELS_INSIDE = "/wheels"
_STAGED_TIME = 1577836800  # 2020: the same for every file, since times are no input, and not before 1980 for wheels
_KEPT_VERSIONS = 4


@dataclass(frozen=True)
class ProjectImage:
    """One of the project's images: its Dockerfile, its inputs and its reference."""

    name: str
    repository: Path
    dockerfile: Path
    inputs: tuple[str, ...]
    reference: str


def describe(name: str, base: str, local: Path | None, repository: Path = REPOSITORY) -> ProjectImage:
    """The image `name` as built from the sources in `repository`."""
    if name not in DOCKERFILES:
        raise ConfigError(f"image {name!r} is unknown. Choose from: {', '.join(DOCKERFILES)}")
    path = repository / DOCKERFILES[name]
    inputs = dockerfile.copied_paths(path.read_text())
    offered = wheels.contents(local) if local else []
    tag = content_hash.tree_digest(repository, inputs, path.read_text(), base, *offered)
    return ProjectImage(name, repository, path, tuple(inputs), f"{IMAGE_PREFIX}{name}:{tag}")


def prepare(artifacts: Artifacts, names: Iterable[str] = DOCKERFILES) -> None:
    """Build and export images of the project, before the cluster runs."""
    with exclusive(artifacts.cache / "locks" / "images", "images"):
        builder = _Builder(artifacts)
        for name in names:
            builder.prepare(describe(name, builder.base, builder.wheels))


def exported(artifacts: Artifacts, names: Iterable[str] = DOCKERFILES) -> tuple[Path, dict[str, str]]:
    """The OCI layout and each named image's reference in it; builds from the current sources what is missing."""
    prepare(artifacts, names)
    builder = _Builder(artifacts)
    return builder.layout, {name: describe(name, builder.base, builder.wheels).reference for name in names}


def load(
    cluster: Cluster, artifacts: Artifacts, names: Iterable[str], repository: Path = REPOSITORY
) -> dict[str, dict[str, str]]:
    """Load all system images and the named images of the project into the cluster; return what charts need.

    Images are built from the sources in `repository`. Those of another checkout are not recorded, because the charts do
    not install them.
    """
    artifacts.require()
    store = ImageStore(running_or_fail(cluster), artifacts.programs()["ctr"], cluster.image_store)
    present = store.references()
    references: dict[str, str] = {}
    with exclusive(artifacts.cache / "locks" / "images", "images"):
        for system_name, image in systemimages.describe(artifacts).items():
            references[system_name] = image.reference
            if image.reference not in present:
                with step(f"load image {system_name}"):
                    store.import_archive(systemimages.archive(image, artifacts.cache))
        builder = _Builder(artifacts)
        for name in names:
            described = describe(name, builder.base, builder.wheels, repository)
            references[name] = described.reference
            if described.reference not in present:
                builder.load(described, store)
            builder.forget_old(described, store)
    found = {name: _for_charts(reference, store) for name, reference in references.items()}
    if repository == REPOSITORY:
        record(cluster).write_text(json.dumps({**_recorded(record(cluster)), **found}, indent=1))
    return found


def record(cluster: Cluster) -> Path:
    """File with what `load` returned for each image since the last `up`."""
    return cluster.state / "images.json"


class _Builder:
    """Buildah, the base image and the OCI layout that all images share."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self.layout = artifacts.cache / "oci"
        self._home = artifacts.cache / "buildah"
        self._buildah = Buildah(self._home, artifacts.sysroot, artifacts.cache / "logs" / "buildah.log")
        self.base = f"localhost/devcluster/base:{artifacts.base_archive.stem.partition('-')[2]}"
        self.wheels = wheels.folder(artifacts.cache)

    def prepare(self, image: ProjectImage) -> None:
        if image.reference in ocilayout.references(self.layout):
            return
        if not self._buildah.has(image.reference):
            self._build(image)
        with step(f"export image {image.name}"):
            self._buildah.export(image.reference, self.layout)

    def load(self, image: ProjectImage, store: ImageStore) -> None:
        self.prepare(image)
        with step(f"load image {image.name}"):
            transfer(self.layout, image.reference, store)

    def forget_old(self, image: ProjectImage, store: ImageStore) -> None:
        """Remove all but the newest few versions of an image everywhere, so that caches stay bounded."""
        ledger = self._artifacts.cache / "images" / f"{image.name}.json"
        known: list[str] = json.loads(ledger.read_text()) if ledger.exists() else []
        kept = newest(known, image.reference, _KEPT_VERSIONS)
        ledger.write_text(json.dumps(kept))
        repository = image.reference.rpartition(":")[0]

        def superseded(references: Iterable[str]) -> set[str]:
            return {found for found in references if found.startswith(f"{repository}:") and found not in kept}

        for reference in superseded(self._buildah.references()):
            self._buildah.remove(reference)
        store.remove(superseded(store.references()))
        if exported := superseded(ocilayout.references(self.layout)):
            ocilayout.drop(self.layout, exported)

    def _build(self, image: ProjectImage) -> None:
        if not self._buildah.has(self.base):
            with step("make the base image"):
                self._buildah.from_archive(self._artifacts.base_archive, self.base)
        with step(f"build image {image.name}"):
            context = Path(tempfile.mkdtemp(prefix=f"{image.name}-", dir=self._home / "tmp"))
            try:
                stage(image.inputs, context, image.repository)
                arguments, mounts = {"BASE_IMAGE": self.base}, {}
                if self.wheels:
                    # Layers are found again by their arguments, not by what is mounted: other wheels, another name.
                    inside = f"{_WHEELS_INSIDE}-{content_hash.digest(*wheels.contents(self.wheels))}"
                    arguments |= {"UV_FIND_LINKS": inside, "PIP_FIND_LINKS": inside}
                    mounts = {self.wheels: inside}
                self._buildah.build(image.dockerfile, context, image.reference, arguments, mounts)
            finally:
                shutil.rmtree(context)


def transfer(layout: Path, reference: str, store: ImageStore) -> None:
    """Load an image from an OCI layout into the store."""

    def send() -> None:
        store.import_stream(lambda stream: ocilayout.write_missing(layout, reference, store.blobs(), stream))

    store.adopt(ocilayout.blobs(layout, reference))
    try:
        send()
    except NodeError:  # an adopted blob may have been collected meanwhile; now it is missing again, and is sent
        send()


def stage(inputs: Iterable[str], context: Path, repository: Path = REPOSITORY) -> None:
    """Copy the inputs, and nothing else, into an empty build context."""
    for relative in inputs:
        for source in content_hash.source_files(repository, relative):
            target = context / source.relative_to(repository)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    for path in context.rglob("*"):
        os.utime(path, (_STAGED_TIME, _STAGED_TIME))


def newest(known: list[str], current: str, limit: int) -> list[str]:
    """The last `limit` versions, oldest first, given those `known` before `current` was used."""
    return [*(reference for reference in known if reference != current), current][-limit:]


def _for_charts(reference: str, store: ImageStore) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"reference": reference, "repository": repository, "tag": tag, "digest": store.digest(reference)}


def _recorded(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found
