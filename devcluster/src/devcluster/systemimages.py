"""The images of static Go programs: pause, CoreDNS, KubeRay's operator and the S3 server.

Their tags are content hashes, so a chart that names a tag names exactly what was built.
"""

from __future__ import annotations

from pathlib import Path

from devcluster import content_hash, ociarchive
from devcluster.artifacts import Artifacts

# module under devcluster/go: (name of the image, path of the program in it)
_PROGRAMS = {
    "pause": ("pause", "/pause"),
    "coredns": ("coredns", "/coredns"),
    "kuberay": ("kuberay-operator", "/manager"),
    "versitygw": ("s3", "/versitygw"),
}


def describe(artifacts: Artifacts) -> dict[str, ociarchive.StaticImage]:
    """The images by name."""
    found: dict[str, ociarchive.StaticImage] = {}
    for module, (name, path) in _PROGRAMS.items():
        program = artifacts.programs()[module]
        tag = content_hash.digest(program.parent.name, path, ociarchive.UNPRIVILEGED_USER)
        reference = f"localhost/devcluster/{name}:{tag}"
        found[name] = ociarchive.StaticImage(reference, {path: program}, [path])
    return found


def archive(image: ociarchive.StaticImage, cache: Path) -> Path:
    """The image as an archive in the cache; made if it does not exist."""
    target = cache / "images" / f"{image.reference.replace('/', '_').replace(':', '-')}.tar"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        ociarchive.write(image, target)
    return target
