"""Builds images without a daemon: buildah turns root file systems and Dockerfiles into images, skopeo into OCI layouts.

Builds run under chroot isolation with the machine's network. All storage is in the cache. Fails with CommandFailed,
which shows the last lines of the build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from devcluster.command import CommandFailed, run
from devcluster.debian import library_overlay, search_path

_BUILD_SECONDS = 3600.0
_EXPORT_SECONDS = 900.0
_CERTIFICATES = Path("/etc/ssl/certs")


class Buildah:
    """Buildah of the sysroot, with storage and configuration under `home`."""

    def __init__(self, home: Path, sysroot: Path, log: Path) -> None:
        self._home = home
        self._log = log
        self._buildah = _in_private_mounts(sysroot, "buildah")
        self._skopeo = _in_private_mounts(sysroot, "skopeo")
        self._environment = {
            "PATH": search_path(sysroot),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(home / "registries.conf"),
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "TMPDIR": str(home / "tmp"),
        }
        self._write_configuration()

    def has(self, reference: str) -> bool:
        """Whether the image is in buildah's storage."""
        try:
            self._run("inspect", "--type", "image", reference)
        except CommandFailed:
            return False
        return True

    def from_archive(self, archive: Path, reference: str) -> None:
        """Make an image whose one layer is the root file system in `archive`."""
        container = self._run("from", "scratch").strip()
        try:
            self._run("add", container, archive, "/", deadline=_BUILD_SECONDS)
            self._run("commit", *self._policy(), container, reference, deadline=_BUILD_SECONDS)
        finally:
            self._run("rm", container)

    def build(
        self, dockerfile: Path, context: Path, reference: str, arguments: Mapping[str, str], mounts: Mapping[Path, str]
    ) -> None:
        """Build `dockerfile`. Its steps see `mounts` (directory here: path there), which do not go into the image."""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--volume={here}:{there}:ro" for here, there in mounts.items()]
        options.append(f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro")
        run(
            [
                *self._buildah,
                "build",
                "--isolation=chroot",
                "--network=host",
                "--layers",
                "--pull-never",
                *self._policy(),
                *options,
                "--file",
                str(dockerfile),
                "--tag",
                reference,
                str(context),
            ],
            deadline=_BUILD_SECONDS,
            env=self._environment,
            log=self._log,
            contained=True,
        )

    def export(self, reference: str, layout: Path) -> None:
        """Add the image to an OCI layout, without the layers that it already has. Layers are not compressed.

        This uses skopeo, because buildah compresses for this kind of target, which takes minutes at every small change.
        """
        run(
            [
                *self._skopeo,
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-oci-accept-uncompressed-layers",
                f"containers-storage:{reference}",
                f"oci:{layout}:{reference}",
            ],
            deadline=_EXPORT_SECONDS,
            env=self._environment,
            contained=True,
        )

    def references(self) -> list[str]:
        """Names of all images in storage."""
        found = json.loads(self._run("images", "--json") or "[]")
        return [name for image in found for name in image.get("names") or []]

    def remove(self, reference: str) -> None:
        """Forget an image and the layers that only it uses."""
        self._run("rmi", reference)

    def _policy(self) -> list[str]:
        return ["--signature-policy", str(self._home / "policy.json")]

    def _run(self, *arguments: str | Path, deadline: float = 120.0) -> str:
        return run([*self._buildah, *arguments], deadline=deadline, env=self._environment, contained=True)

    def _write_configuration(self) -> None:
        (self._home / "tmp").mkdir(parents=True, exist_ok=True)
        storage = f'[storage]\ndriver = "overlay"\nrunroot = "{self._home}/run"\ngraphroot = "{self._home}/storage"\n'
        files = {
            "storage.conf": storage,
            "registries.conf": 'unqualified-search-registries = []\nshort-name-mode = "disabled"\n',
            "containers.conf": '[engine]\ncgroup_manager = "cgroupfs"\n',
            "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',  # every image is built here
        }
        for name, content in files.items():
            (self._home / name).write_text(content)


def _in_private_mounts(sysroot: Path, program: str) -> list[str]:
    """Start `program` in its own mount namespace, where it finds its libraries; no mount outlives it."""
    target, lower = library_overlay(sysroot)
    script = f'mount -t overlay -o ro,lowerdir={lower} overlay {target} && exec {sysroot}/usr/bin/{program} "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", script, program]
