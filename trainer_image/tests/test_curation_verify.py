"""Official solutions against a judge: any of several, one of a cluster, and nothing judged twice."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from curation_world import ADDS, WRONG, livecodebench_row, mathematics_row, own_row, taco_row

from deepcoder_contracts.judge import JudgeResponse, Scoring, TestVerdict, Verdict
from deepcoder_trainer.curation.duplicates import Cluster
from deepcoder_trainer.curation.filters import Settings
from deepcoder_trainer.curation.journal import Journal, verdict_key
from deepcoder_trainer.curation.journal_storage import FileLog
from deepcoder_trainer.curation.prepare import Candidate
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.curation.verify import Verification, Verified
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.backend import Judgement
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.problems.readers import reader_for
from deepcoder_trainer.problems.record import Record
from deepcoder_trainer.rollout.answers import AnswerVerifier
from deepcoder_trainer.types import Problem


class FakeJudge:
    """Passes every program that does not print 0, after a moment; `down` programs no judge can judge."""

    def __init__(self, capacity: int = 3, down: tuple[str, ...] = ()) -> None:
        self.capacity = capacity
        self.errors = 0
        self.retries: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.down = down
        self.under_way = self.most_under_way = 0
        self.requests: list[Submission] = []

    async def judge(self, submission: Submission) -> Judgement:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        code = submission.request.code
        self.asked[code] += 1
        self.requests.append(submission)
        await asyncio.sleep(0.002)
        self.under_way -= 1
        if code in self.down:
            return Judgement(None, 3)
        passed = "print(0" not in code
        verdict = TestVerdict(verdict=Verdict.PASSED if passed else Verdict.WRONG_ANSWER, seconds=0.1)
        return Judgement(JudgeResponse(id="x", passed=passed, verdicts=[verdict], seconds=0.1, worker="w"), 1)

    def refusal(self, problem: Problem) -> str | None:
        return None

    async def run(self) -> None: ...

    async def close(self) -> None: ...


class World:
    def __init__(self, folder: Path, judge: FakeJudge, **settings: Any) -> None:
        self.folder, self.judge, self.settings = folder, judge, Settings(**settings)
        self.spool = Spool(folder)
        self.candidates: list[Candidate] = []
        self.clusters: list[Cluster] = []
        self.verifier: tuple[tuple[str, ...], ...] = ()
        """The command of mathematics' verifier, where it is another than the real one."""

    def add(self, *rows: dict[str, Any]) -> None:
        """One cluster."""
        members = []
        for row in rows:
            record = reader_for(row)[1](row, "set").at(f"f:{len(self.candidates)}", len(self.candidates), "train")
            members.append(len(self.candidates))
            span = self.spool.append(record)
            self.candidates.append(Candidate(record.id, record.source, record.place, "", span, 5, None, None))
        self.clusters.append(Cluster(members, {m: 1.0 if m == members[0] else 0.9 for m in members}))

    async def verify(self) -> Verified:
        journal = Journal(FileLog(self.folder / "judged.jsonl"))
        done: list[int] = []
        answers = AnswerVerifier(*self.verifier)
        try:
            verification = Verification(self.judge, answers, journal, self.spool, self.settings)
            verified = await verification.run(self.candidates, self.clusters, lambda: done.append(1))
        finally:
            await answers.close()
            journal.close()
        assert verified.unjudged or len(done) == len(self.clusters)
        return verified


def unlike(number: int, *solutions: str) -> dict[str, Any]:
    return taco_row(question=f"Problem {number}.", solutions=list(solutions or (f"{ADDS} # {number}",)))


async def test_tests_that_cannot_be_compared_strictly_refuse_the_problem_and_not_the_curation(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    function = {"source": "livecodebench", "kind": "function", "fn_name": "f", "solution": ADDS}
    world.add(own_row(**function, tests=[{"input": "1", "output": "no JSON"}]))
    world.add(own_row(**function, tests=[{"input": "1", "output": "2"}]))
    verified = await world.verify()
    assert [k.index for k in verified.kept] == [1]
    [refused] = verified.refused
    assert (refused.index, refused.filter) == (0, "solution_fails")
    assert refused.reason == "tests.0.output: needs to be one JSON value, to be compared strictly"
    assert world.judge.asked.total() == 1, "what a judge would refuse is not sent"


async def test_any_official_solution_is_enough_and_the_first_that_passes_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    world.add(unlike(1, WRONG, WRONG + "#", ADDS, "never tried"))
    verified = await world.verify()
    assert [(k.index, k.solution) for k in verified.kept] == [(0, 2)]
    assert world.judge.asked == {WRONG: 1, WRONG + "#": 1, ADDS: 1}
    assert all(s.request.scoring is Scoring.STRICT for s in world.judge.requests)


async def test_problems_that_no_solution_passes_are_dropped_and_tries_are_bounded(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge(), max_solutions=2)
    world.add(unlike(1, *(f"{WRONG}#{n}" for n in range(5))))
    [refused] = (await world.verify()).refused
    assert (refused.filter, refused.reason) == ("solution_fails", "2 of 5 official solutions tried, none passes")
    assert world.judge.asked.total() == 2


async def test_of_a_cluster_the_first_that_holds_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    world.add(unlike(1, WRONG), unlike(2, ADDS), unlike(3, ADDS + "#"))
    verified = await world.verify()
    assert [k.index for k in verified.kept] == [1]
    assert [(r.index, r.filter) for r in verified.refused] == [(0, "solution_fails"), (2, "near_duplicate")]
    assert "which is kept instead" in verified.refused[1].reason
    assert ADDS + "#" not in world.judge.asked


async def test_copies_of_what_is_kept_are_told_from_what_is_near_it(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    world.add(unlike(1), unlike(1), unlike(2))
    world.clusters[0].similarity[1] = 1.0
    assert [(r.index, r.filter, r.reason) for r in (await world.verify()).refused] == [
        (1, "exact_duplicate", "the same statement as taco-train-0 (f:0)"),
        (2, "near_duplicate", "90% the same as taco-train-0 (f:0)"),
    ]


async def test_without_a_solution_it_depends_on_the_layout(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    answered = own_row(id="mine-2", tests=None, answer="25", solution=ADDS)
    for row in (taco_row(solutions=[]), livecodebench_row(), mathematics_row(), own_row(solution=None), answered):
        world.add({k: v for k, v in row.items() if v is not None})
    verified = await world.verify()
    assert [(k.index, k.solution) for k in verified.kept] == [(1, None), (2, None), (4, None)]
    assert {r.filter for r in verified.refused} == {"no_solution"}
    assert not world.judge.asked, "an answer has no test that a program could pass"
    kept = World(tmp_path / "b", FakeJudge(), keep_unverified=True)
    kept.add(taco_row(solutions=[]))
    assert [(k.index, k.solution) for k in (await kept.verify()).kept] == [(0, None)]


async def test_mathematics_whose_answer_nobody_can_read_is_dropped(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    world.add(mathematics_row())
    world.add(mathematics_row(answer=r"\frac{1}"), mathematics_row(answer=r"\frac{1}{2}"))
    world.add(mathematics_row(answer="?"))
    verified = await world.verify()
    assert [k.index for k in verified.kept] == [0, 2]
    assert [(r.index, r.filter) for r in verified.refused] == [(1, "unreadable_answer"), (3, "unreadable_answer")]


async def test_without_a_verifier_nothing_is_said_of_mathematics(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    world.verifier = (("/nowhere/verifier",),)
    world.add(mathematics_row())
    world.add(unlike(1))
    verified = await world.verify()
    assert (verified.unjudged, [k.index for k in verified.kept]) == ([0], [1])


async def test_programs_that_cannot_be_sent_are_no_solutions(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    world.add(taco_row(solutions=["a\0b", "#" * (2 << 20)]))
    assert [r.filter for r in (await world.verify()).refused] == ["no_solution"]


async def test_what_no_judge_could_judge_is_told_and_is_not_in_the_journal(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge(down=(ADDS,)))
    world.add(unlike(1, ADDS), unlike(2, "x"))
    world.add(unlike(3, "y"))
    verified = await world.verify()
    assert sorted(verified.unjudged) == [0, 1]
    assert [k.index for k in verified.kept] == [2]
    world.judge.down = ()
    verified = await world.verify()
    assert (verified.unjudged, [k.index for k in verified.kept]) == ([], [0, 2])
    assert (verified.judged, verified.known) == (1, 1)


async def test_where_no_judge_is_left_most_is_not_even_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge(capacity=5, down=(ADDS,)))
    for number in range(100):
        world.add(taco_row(question=f"Problem {number}.", solutions=[ADDS]))
    # Each has tests of its own: they are not the same program on the same tests.
    for index, candidate in enumerate(world.candidates):
        record = world.spool.read(candidate.span)
        own = replace(record, tests=((f"{index}", ""), *record.tests))
        world.candidates[index] = replace(candidate, span=world.spool.append(own))
    verified = await world.verify()
    assert sorted(verified.unjudged) == list(range(100))
    assert world.judge.asked.total() <= 8 + 5
    world.judge.down = ()
    assert len((await world.verify()).kept) == 100


async def test_no_more_is_under_way_than_judges_take(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge(capacity=7))
    for number in range(60):
        world.add(unlike(number))
    assert len((await world.verify()).kept) == 60
    assert world.judge.most_under_way == 7


async def test_a_second_run_judges_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    for number in range(20):
        world.add(unlike(number, WRONG, f"{ADDS} # {number}"))
    first = await world.verify()
    again = World(tmp_path, FakeJudge())
    again.candidates, again.clusters, again.spool = world.candidates, world.clusters, world.spool
    second = await again.verify()
    assert second.judged == 0
    assert second.kept == first.kept
    assert again.judge.asked == {}


async def test_the_same_program_asked_for_twice_at_once_is_judged_once(tmp_path: Path) -> None:
    world = World(tmp_path, FakeJudge())
    for _ in range(3):
        world.add(taco_row(solutions=[ADDS]))
    assert len((await world.verify()).kept) == 3
    assert world.judge.asked == {ADDS: 1}


async def test_a_judge_that_refuses_ends_it_with_its_words_and_leaves_no_task(tmp_path: Path) -> None:
    class Refusing(FakeJudge):
        async def judge(self, submission: Submission) -> Judgement:
            await asyncio.sleep(0.001)
            raise BadConfig("too large")

    forgotten: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context["message"]))
    world = World(tmp_path, Refusing())
    for number in range(5):
        world.add(unlike(number))
    with pytest.raises(BadConfig, match="too large"):
        await world.verify()
    assert len(asyncio.all_tasks()) == 1
    gc.collect()
    assert forgotten == [], "five are refused at once, and one is told"


# --- the journal


def problem(**changes: Any) -> Problem:
    row = own_row(**changes)
    return reader_for(row)[1](row, "s").strict()


def test_a_key_is_all_that_a_verdict_depends_on_and_nothing_else() -> None:
    base = verdict_key(problem(), ADDS)
    assert base == verdict_key(problem(id="other", prompt="other", metadata={}), ADDS)
    tests = [{"input": f"{n} 3\n", "output": f"{max(n, 3)}\n"} for n in range(6)]
    values = [{"input": "[1]\n3", "output": "4"}]
    others = [
        verdict_key(problem(), ADDS + " "),
        verdict_key(problem(tests=tests[:5]), ADDS),
        verdict_key(problem(tests=tests[::-1]), ADDS),
        verdict_key(problem(time_limit_s=3), ADDS),
        verdict_key(problem(memory_limit_mb=64), ADDS),
        verdict_key(problem(tests=values), ADDS),
        verdict_key(problem(tests=values, kind="function", fn_name="f"), ADDS),
        verdict_key(problem(tests=values, kind="function", fn_name="g"), ADDS),
    ]
    assert len({base, *others}) == 9
    one = Record(source="s", prompt="", statement="", tests=(("ab", "c"),)).strict()
    two = Record(source="s", prompt="", statement="", tests=(("a", "bc"),)).strict()
    assert verdict_key(one, "") != verdict_key(two, "")


async def test_a_verdict_is_on_the_disk_when_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    path = tmp_path / "j.jsonl"
    journal = Journal(FileLog(path))

    async def put(number: int) -> None:
        await journal.put(f"k{number}", number % 2 == 0, 0.5)
        assert synced[-1] >= path.read_bytes().index(f'"k{number}"'.encode()), "what was promised was synced"

    await asyncio.gather(*(put(n) for n in range(50)))
    assert len(synced) < 25, "one sync serves what came meanwhile"
    journal.close()
    again = Journal(FileLog(path))
    assert len(again) == 50
    assert (again.get("k2"), again.get("k3"), again.get("no")) == (True, False, None)
    again.close()


async def test_a_verdict_is_that_of_the_judge_that_gave_it(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "old", "passed": true, "seconds": 1}\n')
    journal = Journal(FileLog(path))
    assert journal.get("old") is True, "of a judge without versions"
    journal.judged_by("sha256:a")
    assert journal.get("old") is None
    await journal.put("k", True, 1.0)
    journal.judged_by("sha256:b")
    assert journal.get("k") is None
    await journal.put("k", False, 1.0)
    journal.close()
    again = Journal(FileLog(path))
    known = []
    for version in ("sha256:a", "sha256:b", None):
        again.judged_by(version)
        known.append(again.get("k"))
    again.close()
    assert known == [True, False, None]


async def test_a_line_that_a_crash_cut_short_is_as_if_it_never_was(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    cut = f'{{"key": "b", "passed": true, "seconds": 1, "judge": "{"1" * 99}'  # longer than the line after it
    path.write_text('{"key": "a", "passed": true, "seconds": 1}\n' + cut)
    journal = Journal(FileLog(path))
    assert (journal.get("a"), journal.get("b")) == (True, None)
    await journal.put("c", False, 1.0)
    journal.close()
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


async def test_half_a_line_that_a_full_disk_took_does_not_spoil_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(FileLog(path))
    await journal.put("a", True, 0.1)
    write, taken = os.write, list[int]()

    def full(file: int, data: memoryview) -> int:
        if taken:
            raise OSError(28, "No space left on device")
        taken.append(write(file, data[:20]))
        return taken[0]

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            await journal.put("b", True, 0.1)
    await journal.put("c", False, 0.1)
    journal.close()
    again = Journal(FileLog(path))
    assert [again.get(key) for key in "abc"] == [True, None, False]
    again.close()


def test_a_file_that_is_no_journal_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text("notes\n")
    with pytest.raises(BadConfig, match=r"j\.jsonl:1: not a journal"):
        Journal(FileLog(path))
    assert path.read_text() == "notes\n"


def test_two_curations_do_not_share_a_journal(tmp_path: Path) -> None:
    first = Journal(FileLog(tmp_path / "j.jsonl"))
    with pytest.raises(BadConfig, match="in use by another curation"):
        Journal(FileLog(tmp_path / "j.jsonl"))
    first.close()
    Journal(FileLog(tmp_path / "j.jsonl")).close()


async def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(FileLog(tmp_path / "j.jsonl"))

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        await journal.put("k", True, 0.1)
    journal.close()
