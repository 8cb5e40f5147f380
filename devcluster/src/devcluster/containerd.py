"""The node's image store: which images it has, and import of archives.

Import sends only the blobs that the store lacks, so a small new layer on top of gigabytes takes seconds. Large blobs on
the same disk are not even sent: the file is hard-linked into the store, and containerd is told to look. Fails with
NodeError, which shows ctr's output.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO

from devcluster import node
from devcluster.procfs import ProcessId

ArchiveWriter = Callable[[IO[bytes]], None]

_LIST_SECONDS = 30.0
_REMOVE_SECONDS = 120.0
_IMPORT_SECONDS = 900.0
_ADOPT_SECONDS = 30.0
_WORTH_ADOPTING = 1 << 20
_BLOBS = "io.containerd.content.v1.content/blobs/sha256"


class ImageStore:
    """containerd of one running node, through its client program `ctr`."""

    def __init__(self, process: ProcessId, ctr: Path, root: Path) -> None:
        self._process = process
        self._blobs = root / _BLOBS
        self._ctr = [str(ctr), "--namespace", "k8s.io"]

    def references(self) -> set[str]:
        """Names of all images."""
        return set(self._run(["images", "ls", "-q"]).split())

    def blobs(self) -> set[str]:
        """Digests of all content."""
        return set(self._run(["content", "ls", "-q"]).split())

    def digest(self, reference: str) -> str:
        """Digest of the manifest that `reference` names; raises NodeError if there is no such image."""
        try:
            return self._targets()[reference]
        except KeyError:
            raise node.NodeError(f"image {reference} is not in the cluster") from None

    def adopt(self, blobs: Mapping[str, Path]) -> None:
        """Link large missing `blobs` (digest: file) into the store where they are, if possible.

        The import that must follow sends those that could not be linked, or were collected before an image named them.
        """
        present = self.blobs()
        for digest, blob in blobs.items():
            size = blob.stat().st_size
            if digest in present or size < _WORTH_ADOPTING:
                continue
            place = self._blobs / digest.partition(":")[2]
            expected = [f"--expected-digest={digest}", f"--expected-size={size}"]
            try:
                place.hardlink_to(blob)
                with blob.open("rb") as content:
                    command = [*self._ctr, "content", "ingest", *expected, digest]
                    node.run_inside(self._process, command, _ADOPT_SECONDS, content)
            except node.NodeError:
                place.unlink(missing_ok=True)
            except OSError:  # another disk, or a file of that name is there
                continue

    def import_archive(self, archive: Path) -> None:
        """Import an OCI archive file."""
        with archive.open("rb") as content:
            self._import_from(content.fileno())

    def import_stream(self, write_to: ArchiveWriter) -> None:
        """Import the archive that `write_to` produces into the descriptor it is given."""
        read_end, write_end = os.pipe()
        failure: list[BaseException] = []

        def produce() -> None:
            try:
                with os.fdopen(write_end, "wb") as stream, contextlib.suppress(BrokenPipeError):
                    write_to(stream)
            except BaseException as reason:  # shown to the importing side below
                failure.append(reason)

        producer = threading.Thread(target=produce)
        producer.start()
        try:
            self._import_from(read_end)
        finally:
            os.close(read_end)
            producer.join()
        if failure:
            raise failure[0]

    def remove(self, references: Collection[str]) -> None:
        """Remove images and the content that no other image uses."""
        names = removable(self._targets(), references)
        if names:
            self._run(["images", "rm", "--sync", *names], deadline=_REMOVE_SECONDS)

    def _targets(self) -> dict[str, str]:
        """Manifest digest of each image name."""
        lines = self._run(["images", "ls"]).splitlines()[1:]
        return {line.split()[0]: line.split()[2] for line in lines}

    def _import_from(self, descriptor: int) -> None:
        command = node.inside(self._process, [*self._ctr, "images", "import", "-"])
        try:
            done = subprocess.run(command, stdin=descriptor, capture_output=True, timeout=_IMPORT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise node.NodeError(f"import of an image was not done after {_IMPORT_SECONDS:.0f} s") from None
        if done.returncode != 0:
            raise node.NodeError(f"import of an image failed: {done.stderr.decode(errors='replace').strip()}")

    def _run(self, arguments: list[str], deadline: float = _LIST_SECONDS) -> str:
        return node.run_inside(self._process, [*self._ctr, *arguments], deadline)


def removable(targets: Mapping[str, str], references: Collection[str]) -> list[str]:
    """Names to remove so that the content of `references` is freed, out of all `targets` (name: manifest's digest).

    The kubelet adds one more name to each image, the digest of its configuration, which would keep gigabytes. It is
    removed with the last ordinary name of the same manifest, and also if no ordinary name is left.
    """
    used = {digest for name, digest in targets.items() if name not in references and not name.startswith("sha256:")}
    return sorted(
        name
        for name, digest in targets.items()
        if name in references or (name.startswith("sha256:") and digest not in used)
    )
