"""Checks whether the programs' memory limits fit into the container's. If not, the kernel could kill the whole judge.

No verdict would be wrong, because such a kill is answered with `error`, but all slots' work would be lost each time. So
a server that does not fit does not start: `DoesNotFit` states the sum and the fix. A limit that cannot be read counts
as none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepcoder_contracts.judge import JudgeRequest
from deepcoder_sandbox import limits

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_NO_LIMIT = 1 << 60
_DEFAULT_MB: int = JudgeRequest.model_fields["memory_limit_mb"].default
_SMALLEST_MB = 128
"""Below this, few programs would run, so no smaller limit is proposed."""
_ZYGOTES_DIFFER_MB = 8
"""More than what zygotes of one config differ in, as their layouts are random."""


@dataclass(eq=False)  # not frozen: raising an exception sets its traceback
class DoesNotFit(Exception):
    """The container has less memory than the slots' programs may take."""

    slots: int
    memory_mb: int
    store_mb: int
    requests_mb: int
    limit_mb: int

    def __str__(self) -> str:
        needed_mb = limits.needed_mb(self.slots, self.memory_mb, self.store_mb, self.requests_mb)
        fitting_mb = limits.fitting_mb(self.slots, self.store_mb, self.requests_mb, self.limit_mb)
        smaller = f", or --max-memory-mb {fitting_mb} if no program needs more" if fitting_mb >= _SMALLEST_MB else ""
        return (
            f"the container's memory limit is {self.limit_mb} MiB, and {needed_mb} MiB are needed: {self.slots} slots"
            f" of {self.memory_mb} MiB and their files, {self.store_mb} MiB of stored tests, {self.requests_mb} MiB of"
            f" requests, and the judge itself. Fix: raise the limit, or lower --slots (slotsPerPod of a pool,"
            f" judge.workers of a local run), --tests-store-mb or --max-queued-mb{smaller}"
        )


class OwnLimitTooLow(Exception):
    """The judge's own process may have less memory than its programs."""


def container_limit_mb(files: tuple[str, ...] = _LIMIT_FILES) -> int | None:
    """Return the container's memory limit in MiB; None if there is none, or if it cannot be read."""
    for name in files:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _NO_LIMIT:
            return int(text) // limits.MIB
    return None


def largest_program_mb(
    slots: int, asked_mb: int | None, store_mb: int, requests_mb: int, limit_mb: int | None
) -> int | None:
    """Return the largest memory limit of a program to accept, in MiB: `asked_mb` if it is set, else what fits.

    None means no bound, if the container has no limit. Raises DoesNotFit if `asked_mb`, by default a request's default
    limit, does not fit.
    """
    if limit_mb is None:
        return asked_mb
    fitting_mb = limits.fitting_mb(slots, store_mb, requests_mb, limit_mb)
    least_mb = asked_mb or _DEFAULT_MB
    if fitting_mb < least_mb:
        raise DoesNotFit(slots, least_mb, store_mb, requests_mb, limit_mb)
    return asked_mb or fitting_mb


def within_own_limit(largest_mb: int | None, asked_mb: int | None, most_mb: int) -> int | None:
    """Return the largest memory limit to accept if `largest_mb` is what the container allows; None means no bound.

    `most_mb` is what the limit of the judge's own process leaves to a program of an attacked zygote. A request for more
    would end each zygote that it is given to. Raises OwnLimitTooLow if `asked_mb`, by default a request's default
    limit, is more.
    """
    most_mb -= _ZYGOTES_DIFFER_MB
    least_mb = asked_mb or _DEFAULT_MB
    if most_mb < least_mb:
        raise OwnLimitTooLow(
            f"the judge's own memory limit (ulimit -Hv) leaves {most_mb} MiB to a program, and {least_mb} MiB are"
            " needed. Fix: raise it, or lower --max-memory-mb if no program needs more"
        )
    if most_mb >= _NO_LIMIT // limits.MIB:
        return largest_mb
    return most_mb if largest_mb is None else min(largest_mb, most_mb)
