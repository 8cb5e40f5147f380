"""The alarm of one step of a session: when it is to be rung, and when a program is deaf to it.

LiveCodeBench's harness has the kernel ring it at a test's limit. Here the judge does, by a word to the zygote, and what
does not hear it is ended after a grace. On a busy machine that word may take longer than the grace, so the grace begins
when the zygote has taken it: a program is not deaf to what was never rung.

Pure; nothing here fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_sandbox import outcome
from deepcoder_sandbox.limits import ALARM_GRACE_S, WALL_PER_CPU
from deepcoder_sandbox.worker.starvation import may_go_on


@dataclass
class Alarm:
    """A step's. Seconds are the step's own, those of the wall clock less what others kept its process from going on.

    `states` are those of its threads (`Starvation.states`).
    """

    limit_s: float
    rung: bool = False
    taken_at: tuple[float, float] | None = None
    """CPU and wall-clock seconds when the zygote was first seen to have taken the word."""

    def is_due(self, cpu_s: float, wall_s: float, states: str) -> bool:
        """Whether it is to be rung now.

        Like the harness's it goes by the wall clock, unless the step is still to get some of its time. Threads may take
        more CPU time than that.
        """
        if self.rung:
            return False
        is_over = cpu_s >= self.limit_s or not may_go_on(states, wall_s - self.limit_s)
        return (wall_s >= self.limit_s and is_over) or cpu_s > self.limit_s + ALARM_GRACE_S

    def unheard(self, cpu_s: float, wall_s: float, states: str) -> str | None:
        """Return what is to be said of a program that did not hear it; None as long as it still may."""
        if self.taken_at is None:
            return None
        taken_cpu_s, taken_wall_s = self.taken_at
        wall_limit_s = WALL_PER_CPU * self.limit_s
        if cpu_s > max(self.limit_s, taken_cpu_s) + ALARM_GRACE_S:
            return f"used more than {self.limit_s:g} s of CPU time and did not hear the alarm"
        over_s = wall_s - max(wall_limit_s, taken_wall_s) - ALARM_GRACE_S
        if over_s > 0 and not may_go_on(states, over_s):
            return f"still there after {wall_limit_s:g} s and did not hear the alarm{outcome.doing(states)}"
        return None

    def quiet_s(self, cpu_s: float, wall_s: float) -> float:
        """Return for how long nothing can be due."""
        return self.limit_s + ALARM_GRACE_S - cpu_s if self.rung else self.limit_s - wall_s
