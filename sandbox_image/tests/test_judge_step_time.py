"""The time of one step of a session, and the alarm that goes by it: on clocks that the test moves."""

import socket
from types import SimpleNamespace

import pytest

from deepcoder_sandbox import step_clock
from deepcoder_sandbox.limits import ALARM_GRACE_S, WALL_PER_CPU
from deepcoder_sandbox.step_alarm import Alarm
from deepcoder_sandbox.step_clock import StepClock, receive

LIMIT_S = 2.0
WALL_S = WALL_PER_CPU * LIMIT_S


@pytest.mark.parametrize(
    ("cpu_s", "wall_s", "states", "due"),
    [
        (0.1, 1.9, "S", False),
        (0.1, 2.0, "S", True),
        (2.0, 1.9, "R", False),
        (1.9, 2.5, "SR", False),  # others keep it from running
        (2.0, 2.5, "SR", True),  # it has had its time
        (0.1, 4.0, "D", False),
        (0.1, 9.0, "D", True),  # nothing is believed for so long
        (2.0 + ALARM_GRACE_S, 1.9, "RR", False),
        (2.1 + ALARM_GRACE_S, 1.9, "RR", True),  # its threads together
    ],
)
def test_alarm_is_due_at_the_limit_unless_others_keep_the_step_from_running(cpu_s, wall_s, states, due):
    assert Alarm(LIMIT_S).is_due(cpu_s, wall_s, states) is due
    assert Alarm(LIMIT_S, rung=True).is_due(cpu_s, wall_s, states) is False


@pytest.mark.parametrize(
    ("taken_at", "cpu_s", "wall_s", "states", "reason"),
    [
        (None, 99.0, 99.0, "S", None),  # the zygote has not heard of it
        ((0.1, 2.0), 2.0 + ALARM_GRACE_S, 3.0, "R", None),
        ((1.0, 2.0), 2.1 + ALARM_GRACE_S, 3.0, "R", "CPU time"),
        ((2.5, 2.0), 2.4 + ALARM_GRACE_S, 3.0, "R", None),
        ((2.5, 2.0), 2.6 + ALARM_GRACE_S, 3.0, "R", "CPU time"),
        ((0.1, 2.0), 0.1, WALL_S + ALARM_GRACE_S, "S", None),
        ((0.1, 2.0), 0.1, WALL_S + ALARM_GRACE_S + 0.1, "S", "(threads: 1 asleep)"),
        ((0.1, WALL_S + 2.0), 0.1, WALL_S + ALARM_GRACE_S + 1.9, "S", None),
        ((0.1, WALL_S + 2.0), 0.1, WALL_S + ALARM_GRACE_S + 2.1, "S", "still there after 6 s"),
        ((0.1, 2.0), 0.1, WALL_S + ALARM_GRACE_S + 9.0, "R", None),
        ((0.1, 2.0), 0.1, WALL_S + ALARM_GRACE_S + 4.9, "D", None),
        ((0.1, 2.0), 0.1, WALL_S + ALARM_GRACE_S + 5.1, "D", "(threads: 1 held by the kernel)"),
    ],
)
def test_alarm_is_unheard_a_while_after_the_zygote_has_it_and_after_every_limit(
    taken_at, cpu_s, wall_s, states, reason
):
    said = Alarm(LIMIT_S, rung=True, taken_at=taken_at).unheard(cpu_s, wall_s, states)
    assert said is None if reason is None else reason in said


def test_nothing_is_due_before_the_limit_and_then_before_the_grace_has_passed():
    assert Alarm(LIMIT_S).quiet_s(1.0, 0.5) == 1.5
    assert Alarm(LIMIT_S, rung=True).quiet_s(1.0, 3.0) == 1.0 + ALARM_GRACE_S


@pytest.fixture
def step(monkeypatch):
    """The clock of a process that began 10 s ago on the test's own clock, and what it is told."""
    told = SimpleNamespace(now=100.0, used_s=3.0, asked=[], states="S", seconds=0.0, sample_at=0.0)

    class Starvation:
        def __init__(self, pid, cpu_s, limit_s, since):
            told.asked.append((pid, limit_s, since))
            self.sample_at = told.sample_at

        def mark(self):
            told.asked.append("mark")

        def draw(self):
            told.asked.append("draw")
            self.sample_at = told.sample_at

        def sample(self):
            told.asked.append("sample")

        def states(self):
            told.asked.append("states")
            return told.states

        def seconds(self):
            told.asked.append("seconds")
            return told.seconds

    def cpu_clock(clock):
        if told.used_s is None:
            raise ProcessLookupError
        return told.used_s

    monkeypatch.setattr(step_clock, "monotonic", lambda: told.now)
    monkeypatch.setattr(step_clock, "clock_gettime", cpu_clock)
    monkeypatch.setattr(step_clock, "Starvation", Starvation)
    told.clock = StepClock(7, LIMIT_S, cpu_s=1.0, since=90.0)
    return told


def test_step_has_the_cpu_time_since_it_began_and_keeps_it_when_the_process_is_gone(step):
    assert step.clock.cpu_s() == 2.0
    step.clock.start()
    step.used_s = 3.5
    assert step.clock.cpu_s() == 0.5
    step.used_s = None
    assert step.clock.cpu_s() == 0.5
    step.clock.start()
    assert step.clock.cpu_s() == 0.0


def test_look_leaves_out_what_others_kept_it_from_and_reads_the_states_before_that(step):
    step.seconds = 4.0
    assert step.clock.look() == (6.0, "S")
    assert step.asked == [(7, LIMIT_S, 90.0), "states", "seconds"]
    step.now = 101.0
    step.clock.start()
    step.now = 103.0
    step.seconds = 0.5
    assert step.clock.look()[0] == 1.5


def test_step_that_begins_soon_after_the_last_mark_takes_its_waits_with_it(step):
    step.now = 90.05
    step.clock.start()
    assert step.asked == []
    step.now = 90.2
    step.clock.start()
    assert step.asked == [(7, LIMIT_S, 90.0), "mark"]
    step.now = 90.25
    step.clock.start()
    step.now = 90.4
    step.clock.start()
    assert step.asked[2:] == ["mark"]


def test_first_sample_of_every_step_is_at_a_moment_that_is_drawn(step):
    for _ in range(2):
        step.asked.clear()
        step.sample_at = step.now + 0.5
        assert step.clock.sample_in_s() == 0.5
        step.now += 1.0
        assert step.clock.sample_in_s() == 0.0
        assert step.asked[-2:] == ["draw", "sample"]
        step.clock.start()


def test_packet_is_read_though_its_sender_left_ours_unread():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.send(b"unread")
        theirs.send(b"last")
        theirs.close()
        assert [receive(ours, 64), receive(ours, 64)] == [b"last", b""]
