"""Chooses the tier: the strongest one whose properties all hold against the attacks.

If no tier at or above the minimum holds, it raises `TierRefused`, which says what was tried and how to fix it. Programs
never run with weaker confinement than requested, nor later with weaker confinement than was attacked.

One zygote of each kind is attacked, because each is confined separately. Both are attacked at once, which takes hardly
longer than one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from deepcoder_contracts.judge import Tier
from deepcoder_sandbox import attack
from deepcoder_sandbox.zygote_process import InForce, ZygoteConfig, ZygoteFailed, ZygoteProcess


@dataclass(eq=False)  # not frozen: raising an exception sets its traceback
class TierRefused(Exception):
    """No tier at or above the minimum is available here."""

    minimum: Tier
    reasons: dict[str, str]

    def __str__(self) -> str:
        tried = "; ".join(f"{tier}: {reason}" for tier, reason in self.reasons.items())
        return (
            f"--minimum-tier {self.minimum} is not available here ({tried}). Fix: Namespaces needs root or unprivileged"
            " user namespaces; Landlock needs Linux 5.13 or newer with landlock in its lsm list and a seccomp profile"
            " that allows it. Unconfined is for trusted programs."
        )


STRONGEST_FIRST = (Tier.NAMESPACES, Tier.LANDLOCK, Tier.UNCONFINED)


def find_tier(config: ZygoteConfig, minimum: Tier) -> tuple[ZygoteConfig, attack.Findings]:
    """Return the config of the strongest tier that holds against the attacks, and what the attacks found.

    Zygotes of that config start only with what the attacked ones had in force. Raises TierRefused if no tier from
    `minimum` upwards holds.
    """
    reasons: dict[str, str] = {}
    for tier in STRONGEST_FIRST[: STRONGEST_FIRST.index(minimum) + 1]:
        candidate = replace(config, tier=tier)
        try:
            in_force, findings = _attack_each_kind(candidate)
        except ZygoteFailed as error:
            reasons[tier] = str(error)
            continue
        if not findings.broken:
            return replace(candidate, at_least=in_force), findings
        reasons[tier] = f"not enforced: {', '.join(findings.broken)}"
    raise TierRefused(minimum, reasons)


def _attack_each_kind(config: ZygoteConfig) -> tuple[InForce, attack.Findings]:
    """Return what both kinds have in force, and the properties that hold in both. Raises ZygoteFailed."""
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(_attack, (config, replace(config, harness=True))))
    (in_force, findings), (harness_in_force, harness_findings) = found
    if harness_in_force != in_force:
        raise ZygoteFailed(f"zygotes are not alike: {in_force} and, for livecodebench, {harness_in_force}")
    held = {name: held and harness_findings.limits[name] for name, held in findings.limits.items()}
    return in_force, attack.Findings(config.tier, held, min(findings.most_memory_mb, harness_findings.most_memory_mb))


def _attack(config: ZygoteConfig) -> tuple[InForce, attack.Findings]:
    zygote = ZygoteProcess(config)
    try:
        return zygote.in_force, attack.attack(zygote)
    finally:
        zygote.kill()
