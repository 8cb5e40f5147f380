"""The judge attacks itself before it serves: hostile programs in a real runner try to break each property.

Only what a program could *not* do counts as enforced. `/v1/capacity` reports the result, and `deepcoder_sandbox.tiers`
chooses by it. Raises ZygoteFailed if the attack itself could not be carried out.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deepcoder_contracts.judge import Kind, Tier
from deepcoder_sandbox import attack_limits, attack_session
from deepcoder_sandbox.execution import Execution, Program, execute
from deepcoder_sandbox.limits import CLAIM_BYTES
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.worker import readable_files, rootfs, syscalls
from deepcoder_sandbox.worker.packets import RunLimits
from deepcoder_sandbox.zygote_process import ENVIRONMENT, ZygoteFailed, ZygoteProcess

_DEADLINE_S = 60.0
_DESCRIPTORS = 5
_PROBE = "import json, sys\nexec(json.loads(sys.stdin.readline()), {})"
"""Reads the rest of the program from stdin. In a program's text, the rest would be rewritten before it runs and
searched at its end, which takes longer than the attacks."""

_ATTACKS = (Path(__file__).parent / "attack_probe.py").read_text()
_NEEDED_BY_ALL = ("cpu_time", "wall_time", "memory", "output", "open_files")


@dataclass(frozen=True)
class Findings:
    """What the attacks found."""

    tier: Tier
    limits: dict[str, bool]
    """Whether each property held."""
    most_memory_mb: int = sys.maxsize
    """Largest memory limit that a program can have here, because the judge's own process may be limited."""

    @property
    def broken(self) -> list[str]:
        """Properties of the tier that did not hold."""
        needed = _NEEDED_BY_ALL if self.tier is Tier.UNCONFINED else self.limits
        return [name for name in needed if not self.limits.get(name, False)]


def attack(zygote: ZygoteProcess) -> Findings:
    """Attack every property on a running zygote. Raises ZygoteFailed."""
    limits = _probe(zygote)
    for name, (program, bounds, held) in attack_limits.ATTACKS.items():
        limits[name] = held(_run(zygote, program, b"", bounds))
    limits["left_behind"] = _leaves_nothing(zygote)
    return Findings(zygote.config.tier, limits, zygote.most_memory_mb)


def _run(zygote: ZygoteProcess, source: str, stdin: bytes, limits: RunLimits) -> Execution:
    text, deadline = source.encode(), time.monotonic() + _DEADLINE_S
    if zygote.config.harness:
        return attack_session.run(zygote, text, stdin, limits, deadline)
    with MemoryFile("code", text, sealable=True) as code:
        return execute(zygote, Program(code, len(text), Kind.STDIN), stdin, limits, deadline, CLAIM_BYTES)


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a directory of the judge's user; if none can be created, a missing one, so that nothing is damaged."""
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
        except OSError:
            directory = "/nonexistent"
        yield Path(directory)


def _directories(scratch: Path, tier: Tier) -> set[Path]:
    """Return host directories that a program must not reach, without names of its own root's directories."""
    found = {scratch}
    with suppress(FileNotFoundError):  # the judge's own has been removed
        found.add(Path.cwd())
    with suppress(RuntimeError):  # the user is unknown and HOME is not set: there is no home
        found.add(Path.home())
    return found - ({Path(rootfs.SCRATCH)} if tier is Tier.NAMESPACES else set())


def _listed(directory: Path, packages: tuple[str, ...]) -> bool:
    """Return whether programs may read a directory: a judge may have been started in one of theirs."""
    roots = [
        os.path.realpath(root) for root in (readable_files.stdlib_dir(), *readable_files.library_dirs(), *packages)
    ]
    return any(Path(os.path.realpath(directory)).is_relative_to(root) for root in roots)


def _namespaces() -> dict[str, str]:
    """Return the judge's own namespaces. A program must be in none of them."""
    return {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("user", "pid", "mnt", "ipc", "uts", "net")}


def _leaves_nothing(zygote: ZygoteProcess) -> bool:
    """Return whether a program finds no file of the previous one. Whatever could be written is removed again."""
    with _scratch() as directory:
        # A name never used before: pids are reused, and a killed judge's leftover would make its successor refuse.
        name = f"deepcoder-{secrets.token_hex(8)}"
        paths = [f"{place}/{name}" for place in (".", "/", "/tmp", "/dev/shm", directory)]  # noqa: S108
        given = json.dumps(paths).encode()
        left = _run(zygote, attack_limits.LEAVE, given, attack_limits.bounds())
        found = _run(zygote, attack_limits.FIND, given, attack_limits.bounds())
        for path in map(Path, paths[1:]):
            # Check first: in a pod the root is read-only, and there even removing a missing file fails.
            if path.exists():
                path.unlink()
    return left.ended.exit_status == 0 and found.ended.exit_status == 0 and found.stdout == b"[]"


def _probe(zygote: ZygoteProcess) -> dict[str, bool]:
    """Run the probe program against real bait: the server's own files, a listening socket, its processes."""
    abstract = f"\0deepcoder-sandbox-{zygote.pid}-{time.monotonic_ns()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        _scratch() as scratch,
    ):
        unix.bind(abstract)
        unix.listen()
        victim = scratch / "victim"
        with suppress(OSError):
            victim.write_text("not to be touched")
        directories = _directories(scratch, zygote.config.tier)
        bait = {
            "refused": syscalls.refused_numbers() if zygote.config.tier is not Tier.UNCONFINED else [],
            "environment": sorted(ENVIRONMENT),
            "secret": __file__,
            "victim": str(victim),
            "directories": sorted(map(str, directories)),
            "hidden": sorted(str(path) for path in directories if not _listed(path, zygote.config.packages)),
            "port": tcp.getsockname()[1],
            "abstract": abstract,
            "pids": [os.getpid(), zygote.pid, 1],
            "descriptors": attack_session.DESCRIPTORS if zygote.config.harness else _DESCRIPTORS,
            "namespaces": _namespaces() if zygote.config.tier is Tier.NAMESPACES else {},
        }
        given = f"{json.dumps(_ATTACKS)}\n{json.dumps(bait)}\n"
        run = _run(zygote, _PROBE, given.encode(), attack_limits.bounds())
    if run.ended.exit_status != 0 or not run.stdout:
        tail = run.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:300]
        raise ZygoteFailed(f"the probe did not finish: {tail}")
    return {str(name): held is True for name, held in json.loads(run.stdout).items()}
