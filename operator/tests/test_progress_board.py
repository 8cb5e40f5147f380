"""Which reports wake their run: a thousand runs that each report each five seconds are not planned for each report."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.progress import (
    CheckpointSummary,
    ExpectedSubmissions,
    ProgressReply,
    ProgressReport,
    TrainerPhase,
)
from deepcoder_operator import progress_board as boards
from deepcoder_operator.domain import significance
from deepcoder_operator.progress_board import Heartbeat, ProgressBoard, RunEntry, RunKey

RUN = RunKey("ml", "demo")
CHECKPOINT = CheckpointSummary(uri="s3://b/k", digest=sha256_digest(b"m"), step=10)


class Board(ProgressBoard):
    def __init__(self) -> None:
        super().__init__()
        self.woken: list[float] = []
        self.reports = 0
        self.now = 0.0
        self.on_news = lambda key: self.woken.append(self.now)
        self.on_report = self.count
        self.plan()

    def count(self, _: RunKey) -> None:
        self.reports += 1

    def plan(self, ordinal: int = 1) -> None:
        """A pass posts its answer anew."""
        self.post(RUN, run_uid="u", ordinal=ordinal, reply=ProgressReply(), pool="judges")

    def hear(self, at: float, pod: str = "head", ordinal: int = 1, **fields: Any) -> None:
        self.now = at
        report = {"ordinal": ordinal, "stage": "s", "phase": TrainerPhase.TRAINING, "step": int(at), "max_steps": 99,
                  "sent_at": "2026-01-01T00:00:00Z"} | fields  # fmt: skip
        self.receive(RUN, Heartbeat(ProgressReport.model_validate(report), at, pod))


@pytest.fixture
def board() -> Board:
    return Board()


def test_steps_alone_wake_the_run_each_fifteen_seconds_and_the_pool_each_time(board: Board) -> None:
    for at in range(0, 61, 5):
        board.hear(float(at))
        board.plan()
    assert board.woken == [0.0, 15.0, 30.0, 45.0, 60.0]
    assert boards.FIGURES_SECONDS == significance.FIGURES_SECONDS == 15.0
    assert board.reports == 13


@pytest.mark.parametrize(
    "news",
    [
        {"phase": TrainerPhase.CHECKPOINTING},
        {"latest_checkpoint": CHECKPOINT},
        {"stage": "another"},
        {"pod": "another"},
    ],
)
def test_what_should_be_planned_for_wakes_the_run_at_once(board: Board, news: dict[str, Any]) -> None:
    board.hear(0)
    board.hear(1)
    board.hear(2, **news)
    board.hear(3, **news)
    assert board.woken == [0.0, 2.0]


@pytest.mark.parametrize(("sent", "known"), [("00:00:57Z", 12), ("00:01:00Z", 7), ("00:01:04Z", 7)])
def test_report_that_another_has_overtaken_turns_nothing_back(board: Board, sent: str, known: int) -> None:
    """It was held up, say while its token was reviewed; a step that falls would pass for work that goes on."""
    board.hear(0, sent_at="2026-01-01T00:01:00Z", step=12)
    board.hear(9, sent_at=f"2026-01-01T{sent}", step=7)
    heartbeat = board.heartbeat(RUN, 1)
    assert heartbeat is not None
    assert heartbeat.report.step == known
    assert heartbeat.alive_at == (0 if known == 12 else 9)


def test_report_of_a_sender_whose_clock_was_set_back_or_of_another_pod_is_the_newest(board: Board) -> None:
    board.hear(0, sent_at="2026-01-01T01:00:00Z", step=1)
    board.hear(5, sent_at="2026-01-01T00:00:05Z", step=2)
    board.hear(6, sent_at="2026-01-01T00:00:01Z", step=0, pod="another")
    heartbeat = board.heartbeat(RUN, 1)
    assert heartbeat is not None
    assert (heartbeat.report.step, heartbeat.pod_uid) == (0, "another")


def test_first_report_of_the_next_attempt_wakes_the_run(board: Board) -> None:
    board.hear(0)
    board.plan(ordinal=2)
    board.hear(1, ordinal=2)
    assert board.woken == [0.0, 1.0]


def test_board_tells_since_when_an_attempt_can_be_heard() -> None:
    board = ProgressBoard()
    assert board.listening_since(RUN, 1) is None
    for at in (5.0, 6.0):
        board.post(RUN, run_uid="u", ordinal=1, reply=ProgressReply(), pool=None, at=at)
    assert board.listening_since(RUN, 1) == 5.0
    board.post(RUN, run_uid="u", ordinal=2, reply=ProgressReply(), pool=None, at=7.0)
    assert (board.listening_since(RUN, 1), board.listening_since(RUN, 2)) == (None, 7.0)


OTHER = RunKey("ml", "other")


def lives(board: ProgressBoard, key: RunKey, head: str | None = "head") -> None:
    board.post(key, run_uid=key.name, ordinal=1, reply=ProgressReply(), pool=None, head_uid=head)


def reports(board: ProgressBoard, key: RunKey, at: float, **fields: Any) -> None:
    report = {"ordinal": 1, "stage": "s", "phase": TrainerPhase.TRAINING, "step": int(at), "max_steps": 99,
              "sent_at": "2026-01-01T00:00:00Z"} | fields  # fmt: skip
    board.receive(key, Heartbeat(ProgressReport.model_validate(report), at, "head"))


def test_nobody_was_heard_since_this_process_leads() -> None:
    """An operator that its heads cannot reach from its start says so from its start, not once it was reached."""
    board = ProgressBoard()
    lives(board, RUN)
    lives(board, OTHER)
    assert board.heard(RUN, 100.0) == board.heard(OTHER, 100.0) == 100.0
    reports(board, OTHER, 107.0)
    assert (board.heard(RUN, 100.0), board.heard(OTHER, 100.0)) == (107.0, 100.0)


def test_what_a_run_says_itself_tells_nothing_of_whether_others_can_be_heard() -> None:
    board = ProgressBoard()
    lives(board, RUN)
    lives(board, OTHER)
    for at in (5.0, 6.0, 7.0):
        reports(board, OTHER, at)
    for at in (8.0, 9.0):
        reports(board, RUN, at)
    assert (board.heard(RUN, 0.0), board.heard(OTHER, 0.0)) == (7.0, 9.0)
    reports(board, OTHER, 10.0)
    assert (board.heard(RUN, 0.0), board.heard(OTHER, 0.0)) == (10.0, 9.0)


def test_silence_means_nothing_where_no_other_attempt_runs() -> None:
    """One that waits in its queue has nobody to be heard."""
    board = ProgressBoard()
    lives(board, RUN)
    assert board.heard(RUN, 0.0) is None
    lives(board, OTHER, head=None)
    reports(board, RUN, 7.0)
    assert board.heard(RUN, 0.0) is None
    assert board.heard(OTHER, 0.0) == 7.0
    lives(board, OTHER)
    board.withdraw(OTHER)
    assert board.heard(RUN, 0.0) is None


def test_pool_is_told_of_attempts_that_run_and_announce_nothing(board: Board) -> None:
    """An evaluation announces no programs; its pool, at rest without a judge, must not wait for a queue to grow."""
    assert board.runs_at("ml", "judges") == 0
    board.post(RUN, run_uid="u", ordinal=1, reply=ProgressReply(), pool="judges", head_uid="h")
    board.post(RunKey("ml", "o"), run_uid="v", ordinal=1, reply=ProgressReply(), pool="others", head_uid="i")
    board.post(RunKey("hr", "demo"), run_uid="w", ordinal=1, reply=ProgressReply(), pool="judges", head_uid="j")
    assert board.runs_at("ml", "judges") == 1


def test_pool_is_told_of_runs_that_wait_for_its_judges_until_they_do_no_more(board: Board) -> None:
    """They ask for no GPU before one is ready: nobody else would have it tried."""
    board.wait(RUN, "judges")
    board.wait(RunKey("hr", "demo"), "judges")
    assert board.runs_at("ml", "judges") == 1
    board.post(RUN, run_uid="u", ordinal=2, reply=ProgressReply(), pool="judges")
    assert board.runs_at("ml", "judges") == 0, "its attempt has no head yet"
    board.wait(RUN, "judges")
    assert RUN not in board.entries
    board.withdraw(RUN)
    assert board.runs_at("ml", "judges") == 0


class Counted(dict[RunKey, RunEntry]):
    """Entries that are looked at one by one, never all."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("all runs were looked at")

    items = values = keys = __iter__  # type: ignore[assignment]


def test_pass_over_a_pool_looks_at_its_own_runs_alone() -> None:
    """A thousand runs with a pool each make up to a thousand such passes a second."""
    board = ProgressBoard(entries=Counted())
    announced = {"expected_submissions": ExpectedSubmissions(count=3, within_seconds=60)}
    for name in ("a", "b"):
        key = RunKey("ml", name)
        board.post(key, run_uid=name, ordinal=1, reply=ProgressReply(), pool=name, head_uid="head")
        reports(board, key, 1.0, **announced)
    assert (board.runs_at("ml", "a"), board.expected_submissions("ml", "a", 2.0)) == (1, 3)
    assert board.heard(RunKey("ml", "a"), 0.0) == 1.0


def test_announcements_of_many_runs_do_not_add_up_to_more_than_a_gauge_holds() -> None:
    """Their pool is shared: a pass that fails on one run's report would fail for every run."""
    board, most = ProgressBoard(), {"expected_submissions": ExpectedSubmissions(count=2**53, within_seconds=60)}
    for name in ("a", "b"):
        key = RunKey("ml", name)
        board.post(key, run_uid=name, ordinal=1, reply=ProgressReply(), pool="judges")
        reports(board, key, 1.0, **most)
    assert board.expected_submissions("ml", "judges", 2.0) == 2**53


def test_announcement_is_believed_for_an_hour_at_most(board: Board) -> None:
    """A trainer announces anew with each report. One that is not heard any more does not hold judges for ever."""
    board.hear(0, expected_submissions=ExpectedSubmissions(count=3, within_seconds=86400))
    assert [board.expected_submissions("ml", "judges", at) for at in (3600.0, 3601.0)] == [3, 0]


def test_run_that_changes_its_pool_is_asked_for_at_the_new_one_alone() -> None:
    """A suspended run's sandbox.poolRef may be edited."""
    board = ProgressBoard()
    for pool in ("old", "new"):
        board.post(RUN, run_uid="u", ordinal=1, reply=ProgressReply(), pool=pool, head_uid="head")
    assert (board.runs_at("ml", "old"), board.runs_at("ml", "new")) == (0, 1)
    board.wait(RUN, "third")
    assert (board.runs_at("ml", "new"), board.runs_at("ml", "third")) == (0, 1)
