"""The node's image store: which images it holds, and import of archives.

Import sends only the blobs that the store lacks, so that a small new layer on top of gigabytes takes seconds.
Fails with NodeError, which shows what ctr said.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from devcluster import node
from devcluster.procfs import ProcessId

ArchiveWriter = Callable[[IO[bytes]], None]

_LIST_SECONDS = 30.0
_IMPORT_SECONDS = 900.0


class ImageStore:
    """containerd of one running node, through its client program `ctr`."""

    def __init__(self, process: ProcessId, ctr: Path) -> None:
        self._process = process
        self._ctr = [str(ctr), "--namespace", "k8s.io"]

    def references(self) -> set[str]:
        """Names of all images."""
        return set(self._run(["images", "ls", "-q"]).split())

    def blobs(self) -> set[str]:
        """Digests of all content."""
        return set(self._run(["content", "ls", "-q"]).split())

    def digest(self, reference: str) -> str:
        """Digest of the manifest that `reference` names; raises NodeError when there is no such image."""
        for line in self._run(["images", "ls", f"name=={reference}"]).splitlines()[1:]:
            return line.split()[2]
        raise node.NodeError(f"image {reference} is not in the cluster")

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

    def remove(self, reference: str) -> None:
        """Forget an image; containerd collects what no other image uses."""
        self._run(["images", "rm", reference])

    def _import_from(self, descriptor: int) -> None:
        command = node.inside(self._process, [*self._ctr, "images", "import", "-"])
        done = subprocess.run(command, stdin=descriptor, capture_output=True, timeout=_IMPORT_SECONDS, check=False)
        if done.returncode != 0:
            raise node.NodeError(f"import of an image failed: {done.stderr.decode(errors='replace').strip()}")

    def _run(self, arguments: list[str]) -> str:
        return node.run_inside(self._process, [*self._ctr, *arguments], _LIST_SECONDS)
