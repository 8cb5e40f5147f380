"""Whether the programs' memory limits fit into the container's: if not, the kernel may kill the whole judge.

Such a kill is answered with `error` and retried, so no verdict is wrong, but work is lost: it is said at start and at
`/v1/capacity`, with the mend. A limit that cannot be read counts as none.
"""

from __future__ import annotations

from pathlib import Path

from deepcoder_sandbox import limits

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_NO_LIMIT = 1 << 60


def container_limit_mb(files: tuple[str, ...] = _LIMIT_FILES) -> int | None:
    """Return the container's memory limit in MiB, None where there is none (or none to be read)."""
    for name in files:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _NO_LIMIT:
            return int(text) // limits.MIB
    return None


def largest_program_mb(
    slots: int, store_mb: int, requests_mb: int, default_mb: int, limit_mb: int | None
) -> int | None:
    """Return the largest memory limit to accept where none was set: what fits, but never less than the default."""
    return None if limit_mb is None else max(default_mb, limits.fitting_mb(slots, store_mb, requests_mb, limit_mb))


def shortage(slots: int, memory_mb: int, store_mb: int, requests_mb: int, limit_mb: int | None) -> str | None:
    """Return what is wrong, with the mend, where `slots` programs of `memory_mb` each do not fit; else None."""
    needed = limits.needed_mb(slots, memory_mb, store_mb, requests_mb)
    if limit_mb is None or needed <= limit_mb:
        return None
    return (
        f"{slots} slots of {memory_mb} MiB with their files, {store_mb} MiB of stored tests, {requests_mb} MiB of"
        f" requests and the judge itself need {needed} MiB, the container has {limit_mb} MiB: the kernel may kill the"
        " judge. Mend: raise the container's memory limit, or lower --slots, --max-memory-mb, --tests-store-mb or"
        " --max-queued-mb"
    )
