"""The page's certificate, from a mounted Secret that is renewed elsewhere: reloaded when its files change.

An unusable certificate at the start is a `ConfigError`. Later, the previous certificate stays in use and the log says
why.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from deepcoder_web.config import ConfigError

LOOK_SECONDS = 30.0
_FILES = ("tls.crt", "tls.key")

log = logging.getLogger(__name__)


class Certificate:
    """A TLS context with the certificate in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._seen = self._state()
            self._load(self.context)
        except OSError as error:
            raise ConfigError(f"tlsDirectory: {directory} has no usable tls.crt and tls.key: {error}") from error

    async def follow(self) -> None:
        """Reload the certificate when it changes, until cancelled; new connections then use it."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Load the files again if they have changed."""
        try:
            now = self._state()
            if now == self._seen:
                return
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # try it first: a mismatched pair damages a context
            self._load(self.context)
        except OSError as error:
            log.warning("the certificate in %s cannot be used, the previous one stays: %s", self._directory, error)
            return
        self._seen = now
        log.info("the certificate in %s has changed and was loaded", self._directory)

    def _state(self) -> list[tuple[int, int, int]]:
        states = [(self._directory / name).stat() for name in _FILES]
        return [(state.st_mtime_ns, state.st_ino, state.st_size) for state in states]

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = (self._directory / name for name in _FILES)
        context.load_cert_chain(certificate, key)
