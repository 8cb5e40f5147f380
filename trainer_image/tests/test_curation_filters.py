"""What is dropped and why: single filters, near duplicates, contamination."""

from __future__ import annotations

import datetime
import json
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation_world import own_row, synthetic_row, taco_row, write_jsonl

from deepcoder_trainer.curation import filters, prepare
from deepcoder_trainer.curation.contamination import EvaluationIndex
from deepcoder_trainer.curation.duplicates import Clusters
from deepcoder_trainer.curation.filters import Settings, first_reason, of_one
from deepcoder_trainer.curation.prepare import Input, Preparation
from deepcoder_trainer.curation.shingles import jaccard, shingles, words
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.curation.tally import Tally
from deepcoder_trainer.problems.files import DatasetError
from deepcoder_trainer.problems.record import Record

RECORD = Record(source="s", prompt="p", statement="A statement.", tests=(("1", "1"),) * 5)


def reason(record: Record, settings: Settings | None = None) -> str | None:
    dropped = first_reason(record, of_one(settings or Settings()))
    return dropped and f"{dropped[0]}: {dropped[1]}"


def text(rng: np.random.Generator, length: int) -> list[str]:
    return [f"w{n}" for n in rng.integers(0, 5000, length)]


def test_a_sound_problem_passes() -> None:
    assert reason(RECORD) is None


def test_fewer_than_five_tests_are_too_few() -> None:
    assert reason(replace(RECORD, tests=RECORD.tests[:4])) == "few_tests: 4 tests, at least 5"
    assert reason(replace(RECORD, tests=()), Settings(min_tests=1)) == "few_tests: 0 tests, at least 1"


def test_a_problem_with_an_answer_needs_no_tests() -> None:
    assert reason(replace(RECORD, tests=(), answer="7")) is None


def test_an_empty_statement_is_dropped_whatever_is_around_it() -> None:
    assert reason(replace(RECORD, statement=" \n")) == "empty_statement: the statement is empty"


@pytest.mark.parametrize(
    ("day", "kept"), [("2023-04-30", False), ("2023-05-01", True), ("2024-07-31", True), ("2024-08-01", False)]
)
def test_the_window_has_its_first_day_and_not_its_last(day: str, kept: bool) -> None:
    settings = Settings(since=datetime.date(2023, 5, 1), until=datetime.date(2024, 8, 1))
    record = replace(RECORD, date=datetime.date.fromisoformat(day))
    assert (reason(record, settings) is None) is kept
    assert reason(record) is None
    assert reason(RECORD, settings) is None, "without a date a problem is in every window"


def test_prompts_and_pass_rates_have_bounds() -> None:
    settings = Settings(max_prompt_tokens=10, min_pass_rate=0.0, max_pass_rate=0.9)
    assert filters.too_long(10, settings) is None
    assert filters.too_long(11, settings) == "11 tokens, at most 10"
    assert [r for r in (0.0, 0.1, 0.89, 0.9, 1.0) if filters.out_of_reach(r, settings) is None] == [0.1, 0.89]


# --- statements as sets


def test_case_punctuation_and_space_do_not_count_but_operators_do() -> None:
    assert words("Print A, if A>B;\n  else `B`.") == words("print a if a > b else b")
    assert words("x < y") != words("x > y")


def test_sets_are_the_same_on_every_machine() -> None:
    assert [int(n) for n in shingles(words("one two three four five six"))] == [
        int(n) for n in shingles(words("One two three, four five six."))
    ]
    assert int(shingles(words("one two three four five"))[0]) == 13765718439710093356
    assert len(shingles([])) == 0
    assert len(shingles(["one"])) == 1


def test_jaccard_is_shared_over_all() -> None:
    a = shingles(words("a b c d e f g h"))
    b = shingles(words("a b c d e f g x"))
    assert jaccard(a, b) == pytest.approx(3 / 5)
    assert jaccard(a, a) == 1.0


# --- duplicates


def clusters(statements: list[str], threshold: float = 0.8) -> list[list[int]]:
    found = Clusters(threshold)
    for index, statement in enumerate(statements):
        found.add(index, words(statement), shingles(words(statement)))
    return [c.members for c in found.all]


def test_the_same_words_are_one_cluster_and_short_differences_are_not() -> None:
    assert clusters(["Print a + b.", "print A + B", "Print a - b.", ""]) == [[0, 1], [2], [3]]


def test_a_copy_of_a_near_duplicate_is_as_similar_as_that() -> None:
    first = [f"w{n}" for n in range(100)]
    near = [*first[:-1], "other"]
    found = Clusters(0.8)
    for index, copy in enumerate((first, near, near)):
        found.add(index, copy, shingles(copy))
    [cluster] = found.all
    assert cluster.similarity[0] == 1.0
    assert cluster.similarity[1] == cluster.similarity[2] < 1.0


def test_near_duplicates_are_found_at_their_similarity_and_not_below() -> None:
    rng = np.random.default_rng(0)
    statements, expected = [], []
    for changed in (2, 6, 12, 25, 40) * 20:
        original = text(rng, 300)
        copy = list(original)
        for place in rng.choice(300, changed, replace=False):
            copy[place] = f"other{place}"
        a, b = shingles(original), shingles(copy)
        if jaccard(a, b) >= 0.8:
            expected.append([len(statements), len(statements) + 1])
        else:
            expected += [[len(statements)], [len(statements) + 1]]
        statements += [" ".join(original), " ".join(copy)]
    assert clusters(statements) == expected
    assert 20 <= sum(len(e) == 2 for e in expected) <= 80, "the trial has both kinds"


def test_a_problem_near_two_clusters_belongs_to_the_nearer_one() -> None:
    first = [f"w{n}" for n in range(100)]
    other = [*first[:85], *(f"x{n}" for n in range(15))]
    between = [*first[:90], *other[90:]]
    near, nearer = (jaccard(shingles(between), shingles(each)) for each in (first, other))
    assert 0.8 < near < nearer
    assert clusters([" ".join(each) for each in (first, other, between)]) == [[0], [1, 2]]


def test_a_cluster_of_thousands_is_compared_with_its_first_alone() -> None:
    rng = np.random.default_rng(1)
    original = text(rng, 200)
    found = Clusters(0.8)
    for index in range(3000):
        copy = [*original[:-1], f"n{index}"]
        found.add(index, copy, shingles(copy))
    assert [len(c.members) for c in found.all] == [3000]
    assert found.all[0].similarity[0] == 1.0
    assert 0.98 < found.all[0].similarity[2999] < 1.0


def test_similarities_are_told_by_the_sets_not_by_the_sketch() -> None:
    a = [f"w{n}" for n in range(100)]
    b = [*a[:95], *(f"x{n}" for n in range(5))]
    found = Clusters(0.5)
    found.add(0, a, shingles(a))
    found.add(1, b, shingles(b))
    assert found.all[0].similarity[1] == jaccard(shingles(a), shingles(b))


# --- contamination


TESTS = tuple((f"{n} numbers follow: " + " ".join(str(n * k) for k in range(12)), str(n)) for n in range(6))


def index(*problems: tuple[str, str, tuple[tuple[str, str], ...]]) -> EvaluationIndex:
    made = EvaluationIndex(0.6)
    for name, statement, tests in problems:
        made.add(name, statement, tests)
    made.freeze()
    return made


def statement_of(found: list[str]) -> np.ndarray:
    return shingles(found)


def test_an_evaluation_statement_inside_a_longer_story_contaminates() -> None:
    rng = np.random.default_rng(2)
    task, story, other = text(rng, 60), text(rng, 200), text(rng, 60)
    known = index(("other", " ".join(other), ()), ("lcb (q1)", " ".join(task), ()))
    reason = known.reason(statement_of([*story[:100], *task, *story[100:]]), ())
    assert reason == "100% of its statement is in lcb (q1)"
    assert known.reason(statement_of(story), ()) is None
    assert known.reason(statement_of(task[:30]), ()) is not None, "a part of it is known, too"


def test_half_a_statement_is_not_enough_and_two_thirds_are() -> None:
    rng = np.random.default_rng(3)
    task, fresh = text(rng, 100), text(rng, 100)
    known = index(("e", " ".join(task), ()))
    assert known.reason(statement_of([*task[:50], *fresh[:50]]), ()) is None
    assert known.reason(statement_of([*task[:70], *fresh[:30]]), ()) is not None


def test_short_statements_have_to_agree_nearly_whole() -> None:
    known = index(("e", "Print the sum of two numbers a and b.", ()))
    longer = "Print the sum of two numbers a and b after both were squared, unless one of them is zero."
    assert known.reason(shingles(words(longer)), ()) is None
    assert known.reason(shingles(words("print the sum of two numbers A and B")), ()) is not None


def test_two_shared_tests_contaminate_and_one_does_not() -> None:
    known = index(("e", "unlike", TESTS), ("sole", "other", ((TESTS[5][0] + " 7", "3"),)))
    nothing = shingles(words("quite something else that is said here"))
    assert known.reason(nothing, TESTS[:1]) is None
    assert known.reason(nothing, (*TESTS[:2], ("9", "9"))) == "2 of its tests are in e"
    spaced = tuple((i.replace(" ", "  ") + "\n", f" {o}\n") for i, o in TESTS[:2])
    assert known.reason(nothing, spaced) is not None, "white space does not count"
    assert known.reason(nothing, ((TESTS[5][0] + " 7", "3"),)) == "1 of its tests are in sole"
    assert known.reason(nothing, tuple((i, "other output") for i, _ in TESTS)) is None


def test_arguments_of_a_function_are_the_same_however_they_are_spaced() -> None:
    written = tuple((json.dumps([list(range(n, n + 9)), {"k": n}]), json.dumps([n])) for n in range(3))
    spaced = tuple((json.dumps(json.loads(i), separators=(",", ":")), o) for i, o in written)
    assert spaced[0][0] != written[0][0]
    nothing = shingles(words("quite something else that is said here"))
    assert index(("e", "unlike", written)).reason(nothing, spaced) == "3 of its tests are in e"
    assert index(("e", "unlike", spaced)).reason(nothing, written) == "3 of its tests are in e"
    apart = (("1 2 3 4 5 6 7 8 9 10 11 12 13 14", "7"), ("12 3 4 5 6 7 8 9 10 11 12 13 14 15", "8"))
    joined = tuple((i.replace(" ", "", 1), o) for i, o in apart)
    assert index(("e", "unlike", apart)).reason(nothing, joined) is None, "numbers do not run together"


def test_tests_of_a_few_characters_are_shared_by_chance() -> None:
    tiny = tuple((str(n), str(n)) for n in range(6))
    assert index(("e", "unlike", tiny)).reason(shingles(words("something else")), tiny) is None


def test_no_text_of_an_evaluation_sets_tests_stays_in_memory() -> None:
    known = EvaluationIndex(0.6)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(8):
            known.add(f"p{number}", f"statement {number}", [(f"{number}" * 1000, f"{number}" * (1 << 20))])
        assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
    finally:
        tracemalloc.stop()
    known.freeze()
    nothing = shingles(words("quite something else that is said here"))
    assert known.reason(nothing, [("7" * 1000, "7" * (1 << 20))]) == "1 of its tests are in p7"


def test_without_evaluation_sets_nothing_is_contaminated() -> None:
    assert index().reason(shingles(words("a b c")), TESTS) is None


# --- one pass


def test_records_with_large_tests_are_held_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    def tokenizer(prompts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        together.append(len(prompts))
        return {"input_ids": [[0]] * len(prompts)}

    def read(characters: int) -> None:
        tests = [{"input": "x" * characters, "output": "y"}] * 5
        rows = [own_row(id=f"p{n}", prompt=f"Problem {n}: " + f"word{n} " * 30, tests=tests) for n in range(8)]
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        spool = Spool(tmp_path)
        preparation = Preparation(Settings(), Tally(), spool, evaluations=EvaluationIndex(0.6), tokenizer=tokenizer)
        assert len(preparation.run([Input("mine", path)]).candidates) == 8
        spool.close()

    monkeypatch.setattr(prepare, "_CHUNK_CHARACTERS", 1000)
    read(10)
    assert together == [8]
    together.clear()
    read(100)
    assert together == [2, 2, 2, 2]
    together.clear()
    read(1000)
    assert together == [1] * 8, "a record that is larger by itself is read all the same"


def test_a_row_keeps_its_id_whatever_becomes_of_those_before_it(tmp_path: Path) -> None:
    """Pass rates are joined by id: one row that a release newly reads would give all that follow another's rate."""
    broken = taco_row(input_output="{")
    unwanted = synthetic_row(language="javascript")
    rows = [taco_row(), broken, taco_row(), unwanted, synthetic_row(), own_row(id="mine")]
    path = write_jsonl(tmp_path / "rows.jsonl", [{**row, "n": n} for n, row in enumerate(rows[:-1])] + rows[-1:])
    with closing(Spool(tmp_path)) as spool:
        preparation = Preparation(Settings(min_tests=1), Tally(), spool, evaluations=EvaluationIndex(0.6))
        prepared = preparation.run([Input("set", path)])
    assert [c.id for c in prepared.candidates] == ["taco-train-0", "taco-train-2", "primeintellect-train-1", "mine"]


def test_an_id_in_two_files_of_one_name_is_refused_with_their_folders(tmp_path: Path) -> None:
    for folder in ("apps", "taco"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        write_jsonl(tmp_path / "set" / folder / "train.jsonl", [own_row(id="mine", prompt=f"of {folder}")])
    with closing(Spool(tmp_path)) as spool:
        preparation = Preparation(Settings(min_tests=1), Tally(), spool, evaluations=EvaluationIndex(0.6))
        with pytest.raises(
            DatasetError, match=r"id: 'mine' was used at set/apps/train\.jsonl:1: give each problem an id"
        ):
            preparation.run([Input("set", tmp_path / "set")])
