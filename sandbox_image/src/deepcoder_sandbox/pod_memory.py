"""Whether the programs' memory limits fit into the container's: if not, the kernel may kill the whole judge.

Such a kill is answered with `error` and retried, so no verdict is wrong, but work is lost: it is said at start and at
`/v1/capacity`, with the mend.
"""

from __future__ import annotations

from pathlib import Path

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_NO_LIMIT = 1 << 60
_JUDGE_MB = 256
_MIB = 1 << 20


def container_limit_mb(files: tuple[str, ...] = _LIMIT_FILES) -> int | None:
    """Return the container's memory limit in MiB, None where there is none (or none to be read)."""
    for name in files:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _NO_LIMIT:
            return int(text) // _MIB
    return None


def shortage(slots: int, memory_mb: int, limit_mb: int | None) -> str | None:
    """Return what is wrong, with the mend, where `slots` programs of `memory_mb` each do not fit; else None."""
    needed = slots * memory_mb + _JUDGE_MB
    if limit_mb is None or needed <= limit_mb:
        return None
    return (
        f"{slots} slots of {memory_mb} MiB and the judge itself need {needed} MiB, the container has {limit_mb} MiB:"
        " the kernel may kill the judge. Mend: raise the container's memory limit, or lower --slots or --max-memory-mb"
    )
