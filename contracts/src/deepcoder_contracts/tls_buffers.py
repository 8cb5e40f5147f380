"""The memory of an open TLS connection to one of our servers.

asyncio reads each into a buffer of 256 KiB, which is not configurable: a thousand connections, of which nobody has to
say who they are, would be a quarter of a gigabyte. What is longer than ours arrives in several pieces.
"""

from __future__ import annotations

from asyncio.sslproto import SSLProtocol

TLS_BUFFER_BYTES = 8 * 1024


def use_small_tls_buffers() -> None:
    """Use buffers of `TLS_BUFFER_BYTES` for all TLS connections of this process from now on."""
    SSLProtocol.max_size = TLS_BUFFER_BYTES
