"""Choosing a tier: the strongest whose every property holds against the attacks.

Fails with `TierRefused`, which says what was tried and the mend, where none holds at or above the minimum: programs are
never run under less than was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_contracts.judge import Tier
from deepcoder_sandbox import attack
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess


@dataclass(eq=False)  # an exception: what passes it on writes its traceback into it
class TierRefused(Exception):
    """No tier at or above the minimum can be had here."""

    minimum: Tier
    reasons: dict[str, str]

    def __str__(self) -> str:
        tried = "; ".join(f"{tier}: {reason}" for tier, reason in self.reasons.items())
        return (
            f"--minimum-tier {self.minimum} cannot be had here ({tried}). Mend: Namespaces needs root or unprivileged"
            " user namespaces; Landlock needs Linux 5.13 or newer with landlock in its lsm list and a seccomp profile"
            " that lets it through. Unconfined is for programs that you trust."
        )


STRONGEST_FIRST = (Tier.NAMESPACES, Tier.LANDLOCK, Tier.UNCONFINED)


def find_tier(config: ZygoteConfig, minimum: Tier) -> tuple[ZygoteConfig, attack.Findings]:
    """Return the strongest tier that holds against the attacks. Raises TierRefused below the minimum."""
    reasons: dict[str, str] = {}
    for tier in STRONGEST_FIRST[: STRONGEST_FIRST.index(minimum) + 1]:
        candidate = ZygoteConfig(tier, config.packages, config.preload)
        try:
            zygote = ZygoteProcess(candidate)
            try:
                findings = attack.attack(zygote)
            finally:
                zygote.kill()
        except ZygoteFailed as error:
            reasons[tier] = str(error)
            continue
        if not findings.broken:
            return candidate, findings
        reasons[tier] = f"not enforced: {', '.join(findings.broken)}"
    raise TierRefused(minimum, reasons)
