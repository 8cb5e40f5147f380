"""The alarm of one step of a session: when it is due, and when a program has ignored it.

In LiveCodeBench's harness the kernel sends the alarm at a test's limit. Here the judge asks the zygote to send it, and
ends a program that does not react within a grace period. On a busy machine the request may take longer than that. So
the grace period begins when the zygote has received the request: a program cannot ignore an alarm that was not sent.

Pure; nothing here fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_sandbox import outcome
from deepcoder_sandbox.limits import ALARM_GRACE_S, WALL_PER_CPU
from deepcoder_sandbox.worker.starvation import may_go_on


@dataclass
class Alarm:
    """A step's alarm. Seconds are the step's own; wall-clock seconds exclude time in which others kept it from running.

    `states` are those of its threads (`Starvation.states`).
    """

    limit_s: float
    rung: bool = False
    taken_at: tuple[float, float] | None = None
    """CPU and wall-clock seconds when the zygote was first seen to have received the request."""

    def is_due(self, cpu_s: float, wall_s: float, states: str) -> bool:
        """Return whether the alarm is due now.

        Like the harness's alarm, it goes by the wall clock, unless others still keep the step from running. Several
        threads together may use more CPU time than that.
        """
        if self.rung:
            return False
        is_over = cpu_s >= self.limit_s or not may_go_on(states, wall_s - self.limit_s)
        return (wall_s >= self.limit_s and is_over) or cpu_s > self.limit_s + ALARM_GRACE_S

    def unheard(self, cpu_s: float, wall_s: float, states: str) -> str | None:
        """Return the reason for ending a program that ignored the alarm; None while it may still react."""
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
        """Return the seconds for which nothing can be due."""
        return self.limit_s + ALARM_GRACE_S - cpu_s if self.rung else self.limit_s - wall_s
