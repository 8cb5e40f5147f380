"""Passes connections from a loopback port of the machine to an address inside the node's network namespace.

`python -m devcluster.forwarder RECORD CGROUP LISTEN_PORT NODE_PID HOST PORT` first listens on the machine's side, then
moves into the node's network namespace, where it makes its connections. The record is written once it listens; port 0
lets the kernel choose. It ends with the node. Fails at once if the port is taken or the node is gone.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
from pathlib import Path

from devcluster import cgroups, procfs

_CLONE_NEWNET = 0x40000000
_CONNECT_SECONDS = 10.0
_CHUNK = 1 << 16


def main(arguments: list[str]) -> int:
    """Listen, enter the namespace, record, serve."""
    record, cgroup, listen_port, node_pid, host, port = arguments
    node = os.pidfd_open(int(node_pid))
    cgroups.join(cgroup)
    listener = socket.create_server(("127.0.0.1", int(listen_port)), backlog=512)
    namespace = os.open(f"/proc/{node_pid}/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns into the node's network namespace")
    os.close(namespace)
    identity = procfs.ProcessId.of(os.getpid())
    assert identity is not None
    bound: int = listener.getsockname()[1]
    procfs.save(Path(record), identity, listen_port=bound, host=host, port=int(port))
    asyncio.run(_serve(listener, node, host, int(port)))
    return 0


async def _serve(listener: socket.socket, node: int, host: str, port: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(node, ended.set)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                inner_reader, inner_writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        for side in (writer, inner_writer):
            side.transport.abort()

    async with await asyncio.start_server(connected, sock=listener):
        await ended.wait()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, then pass the end on, because the other direction may continue. An error ends both."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
