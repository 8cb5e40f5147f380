"""The certificate authorities of S3 servers, in files, because botocore takes them only from files.

The files have no names. The kernel removes them with the last client that uses them, also if the process is killed, so
that neither rotated keys nor restarts fill the pod's small /tmp. Clients with the same authorities share a file.
"""

from __future__ import annotations

import hashlib
import ssl
import tempfile
import weakref

MAX_BYTES = 512 * 1024
"""Size, in bytes, of the largest bundle. All public authorities together have half of that."""


class Authority:
    """A PEM bundle in a file, which exists as long as this object."""

    def __init__(self, pem: bytes) -> None:
        file = tempfile.TemporaryFile()  # noqa: SIM115  closed with this object
        weakref.finalize(self, file.close)
        file.write(pem)
        file.flush()
        self.path = f"/proc/self/fd/{file.fileno()}"


class Authorities:
    """The files in use. For one thread at a time."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[str, Authority] = weakref.WeakValueDictionary()

    def file(self, pem: str) -> Authority:
        """Return the file of a bundle. Raises ValueError if it cannot be used, and OSError if it cannot be written."""
        content = pem.encode()
        if len(content) > MAX_BYTES:
            raise ValueError(
                f"has {len(content)} bytes, and may have {MAX_BYTES}: leave only your server's authorities"
            )
        digest = hashlib.sha256(content).hexdigest()
        known = self._known.get(digest)
        if known is None:
            known = Authority(content)
            try:
                ssl.create_default_context(cafile=known.path)
            except ssl.SSLError as e:
                raise ValueError(f"is not PEM: {e}") from e
            self._known[digest] = known
        return known
