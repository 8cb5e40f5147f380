"""Saves the end of the trainer's output next to its exit record, however the trainer ends.

In a RayJob the driver prints into a file inside the head pod, which is lost with the pod and is not part of any
container's log. A separate process waits until the trainer has ended, even by SIGKILL or a crash in native code. It
then uploads the last 4 MiB of the file to `logs/driver.log`, without the head's secrets; what Ray's workers print is in
it, but a Secret that only they have is not known here. The log is for people: a failure here does not affect the
attempt, and becomes the last line of the file. If the pod is removed at once, the log is lost.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepcoder_contracts.redaction import SECRET_NAME, Redactor

if TYPE_CHECKING:
    from deepcoder_contracts.stage import StageConfig

log = logging.getLogger(__name__)

BYTES = 4 << 20
_LOOK_SECONDS = 0.3
_SAVE_SECONDS = 60
"""Time after which the process ends in any case."""

_ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_children: list[subprocess.Popen[bytes]] = []


def save_at_the_end(config: Path) -> None:
    """Start the process that saves the log after this process. Do nothing if stderr is not a file but a terminal."""
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return
    command = [sys.executable, "-m", "deepcoder_trainer.running.driverlog", str(config.resolve()), str(os.getpid())]
    # Ray and the kubelet send these signals to all of the trainer's processes, but this one works after that. It
    # inherits them blocked. If one arrives here meanwhile, it is delivered when the mask is restored.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED)
    try:
        # In its own session, because Ray kills the driver's whole process group.
        _children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
    except OSError as error:
        log.warning("this output will not be saved: %s", error)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(arguments: list[str]) -> int:
    """Wait for the trainer's end, then save."""
    path, trainer = Path(arguments[0]), int(arguments[1])
    while os.getppid() == trainer:
        time.sleep(_LOOK_SECONDS)
    signal.alarm(_SAVE_SECONDS)
    try:
        _save(path)
    except Exception as error:
        sys.stderr.write(f"deepcoder-trainer: this log could not be saved: {type(error).__name__}: {error}\n")
        return 1
    return 0


def _save(path: Path) -> None:
    from deepcoder_contracts.layout import DRIVER_LOG, log_key
    from deepcoder_contracts.stage import StageConfig
    from deepcoder_trainer.checkpoint.opening import open_run_storage
    from deepcoder_trainer.config import load_config

    config = load_config(path)
    if not isinstance(config, StageConfig):
        raise TypeError("only an attempt of a stage has a place for its log")
    text = redactor_of(config, path).text(end_of(Path("/proc/self/fd/2")).decode(errors="replace"))
    open_run_storage(config.storage).put_bytes(log_key(config.stage.name, config.ordinal, DRIVER_LOG), text.encode())


def redactor_of(config: StageConfig, path: Path) -> Redactor:
    """Return a redactor for the secrets of this process. `path` is the config, or a file next to it: its folder is not
    a Secret. Raises `TooManyForms`."""
    return Redactor([*secrets_of(os.environ), *_tokens(config), *mounted(Path("/proc/self/mounts"), path)])


def without_secrets(config: StageConfig, text: str) -> str:
    """Return an attempt's final message for a status, which more people can read than its logs."""
    beside = config.judge.token_file or (config.progress.token_file if config.progress else None)
    try:
        return redactor_of(config, Path(beside or "/none/none")).text(text)
    except Exception as error:
        return f"the message is left out, because its secrets could not be removed: {type(error).__name__}"


def end_of(file: Path) -> bytes:
    """Return the last bytes of a file, from the beginning of a line."""
    with file.open("rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(size - BYTES, 0))
        data = f.read(BYTES)
    return data[data.find(b"\n") + 1 :] if size > BYTES else data


def secrets_of(environment: Mapping[str, str]) -> Iterable[bytes]:
    """Return the values of variables that are named like secrets."""
    return [value.encode() for name, value in environment.items() if SECRET_NAME.search(name.upper())]


def _tokens(config: StageConfig) -> Iterable[bytes]:
    files = (config.judge.token_file, config.progress.token_file if config.progress else None)
    return [Path(file).read_bytes() for file in files if file and Path(file).is_file()]


def mounted(mounts: Path, config: Path) -> Iterable[bytes]:
    """Return the files in volumes that Kubernetes keeps in memory, such as Secrets, except in the config's folder."""
    found = []
    for line in mounts.read_text().splitlines():
        _, where, kind, *_ = line.split()
        folder = Path(where)
        if kind == "tmpfs" and folder != config.parent and (folder / "..data").is_dir():
            found += [file.read_bytes() for file in sorted((folder / "..data").rglob("*")) if file.is_file()]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
