"""A server whose TLS connections break in the middle of each object, as those of a failing proxy do."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_RECORD = b"\x17\x03\x03\x00\x20" + b"?" * 32
"""A record that no key fits."""


@contextmanager
def running(directory: Path) -> Iterator[tuple[str, Path]]:
    """Its endpoint, and the file of its certificate, which is its own authority."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_serve, args=(listening, context), daemon=True)
        thread.start()
        yield f"https://localhost:{listening.getsockname()[1]}", certificate
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _serve(listening: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            raw, _ = listening.accept()
        except OSError:  # the test has ended
            return
        with context.wrap_socket(raw, server_side=True) as tls:
            while b"\r\n\r\n" not in tls.recv(1 << 16):
                pass
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n")
            tls.sendall(b"Last-Modified: Fri, 01 May 2026 12:00:00 GMT\r\n\r\nhalf of it")
            with socket.socket(fileno=tls.detach()) as bare:
                bare.sendall(_NO_RECORD)
