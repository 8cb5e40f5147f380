"""Certificates and keys that a kubeconfig or a credential plugin contains, without a copy that outlives this process.

OpenSSL reads them from files only. The kubernetes package writes such files to the temporary directory and removes them
when the interpreter exits, so a command that a signal ends would leave the user's key on the disk. This module moves
them into files in memory, which end with the process however it ends. The package's own files exist only while it
reads the kubeconfig. Where the system has no files in memory (macOS), they are in a directory of the user's until the
configuration is dropped or the interpreter exits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from kubernetes import client
from kubernetes.config.kube_config import KubeConfigLoader

_FIELDS = ("ssl_ca_cert", "cert_file", "key_file")
_OPEN_FILES = Path("/proc/self/fd")
_LOADING = threading.Lock()
"""The kubernetes package uses a file again for the same content. Another thread's would be removed too soon."""


def load(make: Callable[..., KubeConfigLoader], configuration: client.Configuration) -> None:
    """Have a loader, made with a `temp_file_path`, set the configuration. The files exist as long as that does."""
    with _LOADING, tempfile.TemporaryDirectory(prefix="kubeconfig-") as folder:
        loader = make(temp_file_path=folder)
        loader.load_and_set(configuration)
        for field in _FIELDS:
            written = getattr(loader, field, None)
            if written and Path(written).parent == Path(folder):
                kept = str(_kept(Path(written).read_bytes(), configuration))
                setattr(configuration, field, kept)
                setattr(loader, field, kept)  # it sets the configuration again when it renews a token


def _kept(content: bytes, owner: client.Configuration) -> Path:
    """Return a file with this content, which exists as long as its owner."""
    if hasattr(os, "memfd_create") and _OPEN_FILES.is_dir():
        descriptor = os.memfd_create("kubeconfig")
        weakref.finalize(owner, os.close, descriptor).atexit = False  # threads may still use it until the exit
        os.write(descriptor, content)
        return _OPEN_FILES / str(descriptor)
    folder = tempfile.mkdtemp(prefix="kubeconfig-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder) / "pem"
    file.touch(0o600)
    file.write_bytes(content)
    return file
