"""Published layouts as problem sets: what is read, what is asked, what is refused."""

from __future__ import annotations

import builtins
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_world import BODY, HEAD, SETS, evalplus_release_row, find_zero_row, humaneval_row, humanevalplus_row
from curation_world import (
    codeforces_row,
    livecodebench_function_row,
    livecodebench_row,
    official_codeforces_row,
    own_row,
    synthetic_row,
    write_jsonl,
)
from evaluation_world import Context, make_context
from released_world import write_hub

from deepcoder_contracts.judge import Kind, Scoring
from deepcoder_contracts.stage import EvaluationDataset, Extraction
from deepcoder_trainer.curation.filters import Settings
from deepcoder_trainer.curation.prepare import Input, index_evaluations
from deepcoder_trainer.curation.shingles import shingles, words
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.benchmarks import Benchmark, load_benchmark
from deepcoder_trainer.evaluation.problemsets import read_problem_sets
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.problems.extract import livecodebench_block, program_of
from deepcoder_trainer.problems.files import DatasetError
from deepcoder_trainer.problems.humaneval import humaneval_problem

STORY = (
    "A list of numbers is given; return the sum of those that are larger than all that stand before them in the list, "
    "where the first of them always counts, and the empty list has a sum of zero."
)


def load(tmp_path: Path, rows: list[dict[str, Any]], name: str = "set", **settings: Any) -> Benchmark:
    names = settings.pop("names", None)
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    return load_benchmark(path, EvaluationDataset(name=name, uri=str(path), **settings), names)


def test_each_layout_is_judged_as_its_source_is(tmp_path: Path) -> None:
    found = {name: load(tmp_path, rows, name).problems for name, (rows, _) in SETS.items()}
    livecodebench = found["livecodebench"]
    assert [p.scoring for p in livecodebench] == [Scoring.LIVECODEBENCH] * 2
    assert [(p.kind, p.fn_name, p.time_limit_s) for p in livecodebench] == [
        (Kind.STDIN, None, 6.0),
        (Kind.FUNCTION, "repeat", 6.0),
    ]
    assert [len(p.tests) for p in livecodebench] == [4, 6], "public and private tests"
    assert [p.scoring for p in found["codeforces"]] == [Scoring.STRICT]
    assert {p.kind for name in ("humaneval", "humanevalplus", "evalplus") for p in found[name]} == {Kind.SCRIPT}
    assert [p.answer for p in found["aime"]] == ["25", "\\frac{1}{2}"]
    assert [p.id for p in found["aime"]] == ["aime-1", "II-3"]


def test_prompts_are_those_of_the_released_evaluation(tmp_path: Path) -> None:
    [problem, function] = load(tmp_path, SETS["livecodebench"][0]).problems
    assert problem.prompt.startswith("You are an expert Python programmer. You will be given a question")
    assert problem.prompt.endswith(
        "```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    assert "```python\nclass Solution:\n    def repeat" in function.prompt
    [problem] = load(tmp_path, SETS["humaneval"][0]).problems
    assert problem.prompt.startswith("Write a complete, self-contained Python solution to the following problem.")
    assert problem.prompt.endswith(f"```python\n{HEAD.strip()}\n```")
    assert "return [n / 2" not in problem.prompt, "the solution is not shown"


def test_window_keeps_days_from_since_up_to_until(tmp_path: Path) -> None:
    rows = [
        livecodebench_row(question_id=day, contest_date=f"{day}T00:00:00")
        for day in ("2024-07-31", "2024-08-01", "2025-01-31", "2025-02-01")
    ]
    found = load(tmp_path, rows, since="2024-08-01", until="2025-02-01")
    assert [p.id for p in found.problems] == ["2024-08-01", "2025-01-31"]
    assert {f.date.isoformat() for f in found.facts.values() if f.date} == {"2024-08-01", "2025-01-31"}
    with pytest.raises(DatasetError, match="no problem in it from 2026-01-01 to None"):
        load(tmp_path, rows, since="2026-01-01")
    with pytest.raises(DatasetError, match=r"set\.jsonl:1: date: missing, and set has a window"):
        load(tmp_path, [own_row()], since="2024-08-01")


def test_own_rows_may_have_a_date_and_a_difficulty(tmp_path: Path) -> None:
    rows = [own_row(metadata={"difficulty": "Hard", "date": "2024-08-03"})]
    facts = load(tmp_path, rows, since="2024-08-01").facts["mine-1"]
    assert (facts.difficulty, str(facts.date)) == ("hard", "2024-08-03")
    with pytest.raises(DatasetError, match="is not a date"):
        load(tmp_path, [own_row(metadata={"date": "2024-99-03"})])


def test_codeforces_problems_are_named_by_their_rows_or_in_order_and_carry_the_caveat(tmp_path: Path) -> None:
    rows = [
        codeforces_row(contest_id=1234, index="A"),
        codeforces_row(problem="Another.", contest_id="1234", index="B1"),
    ]
    found = load(tmp_path, rows, "codeforces")
    assert [f.contest_problem for f in found.facts.values()] == ["1234A", "1234B1"]
    assert found.notes[0].startswith("2 of 2 problems are judged by the statement's sample tests alone")
    assert "(0 have a single one)" in found.notes[0]
    named = load(tmp_path, [codeforces_row()], "codeforces", names=("77C",), contests="/cf")
    assert [f.contest_problem for f in named.facts.values()] == ["77C"]
    with pytest.raises(BadConfig, match="names 2 problems, codeforces has 1"):
        load(tmp_path, [codeforces_row()], "codeforces", names=("77C", "77D"), contests="/cf")
    with pytest.raises(DatasetError, match="'seventy' is not a Codeforces problem"):
        load(tmp_path, [codeforces_row()], "codeforces", names=("seventy",))
    assert load(tmp_path, [own_row()]).notes == ()


def test_official_tests_of_codeforces_are_all_used_and_need_no_caveat(tmp_path: Path) -> None:
    tests = [{"input": f"1\n{n}\n", "output": f"{n}\n"} for n in range(20)]
    rows = [
        official_codeforces_row(official_tests=tests),
        official_codeforces_row(id="1900/B", index="B", official_tests=None),
        official_codeforces_row(id="1900/C", index="C", generated_checker="code"),
        official_codeforces_row(id="1900/D", index="D", official_tests=[], examples=None),
    ]
    found = load(tmp_path, rows, "cf")
    assert [len(p.tests) for p in found.problems] == [20, 1]
    assert [f.contest_problem for f in found.facts.values()] == ["1900A", "1900B"]
    assert {f.date.year for f in found.facts.values() if f.date} == {2023}
    assert found.notes[0].startswith("1 problems are left out: a problem that is judged by a checker")
    assert found.notes[1] == "1 problems are left out: a problem without tests"
    assert found.notes[2].startswith("1 of 2 problems are judged by the statement's sample tests alone")


def test_problems_of_a_contest_that_numbers_them_are_measured_and_in_no_rating(tmp_path: Path) -> None:
    """921/01 is one: named 92101, it would be a problem of another contest."""
    rows = [official_codeforces_row(id="921/01", contest_id="921", index="01"), official_codeforces_row()]
    found = load(tmp_path, rows, "cf")
    assert [f.contest_problem for f in found.facts.values()] == [None, "1900A"]


def test_least_memory_that_codeforces_gave_is_what_an_interpreter_needs(tmp_path: Path) -> None:
    found = load(tmp_path, [official_codeforces_row(memory_limit=4.0)], "cf")
    [submitted] = [JudgedProblem(problem).submission("print(1)", "1") for problem in found.problems]
    assert submitted.request.memory_limit_mb == 16


def test_official_tests_of_codeforces_that_are_not_all_carry_a_caveat(tmp_path: Path) -> None:
    rows = [
        official_codeforces_row(),
        official_codeforces_row(id="1900/B", index="B", official_tests_complete=False),
        official_codeforces_row(id="1900/C", index="C", official_tests=None, official_tests_complete=False),
    ]
    assert load(tmp_path, rows, "cf").notes == (
        "1 of 3 problems are judged by the statement's sample tests alone, not by Codeforces' hidden tests: an upper "
        "bound, not what submissions would get (1 have a single one)",
        "1 of 3 problems are judged by a part of Codeforces' tests, since the set leaves out long ones: an upper bound",
    )


def test_training_problem_that_is_one_of_humaneval_is_found(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "humaneval.jsonl", [humaneval_row(prompt=f"def f():\n    '''{STORY}'''\n")])
    index = index_evaluations([Input("humaneval", path)], Settings())
    reason = index.reason(shingles(words(f"Please write this. {STORY}")), ())
    assert reason is not None
    assert "humaneval (HumanEval/900)" in reason
    other = "Another thing altogether, told in other words and at some length, which is of no use to anybody."
    assert index.reason(shingles(words(other)), ()) is None


def test_a_problem_that_an_evaluation_leaves_out_is_kept_away_from_all_the_same(tmp_path: Path) -> None:
    checked = official_codeforces_row(description=STORY, generated_checker="def check(): ...")
    other_language = synthetic_row(language="cpp", prompt=f"Told once more and otherwise. {STORY[::-1]}")
    path = write_jsonl(tmp_path / "codeforces.jsonl", [official_codeforces_row(), checked, other_language])
    index = index_evaluations([Input("codeforces", path)], Settings())
    reason = index.reason(shingles(words(STORY)), ())
    assert reason is not None
    assert "codeforces (codeforces.jsonl:2)" in reason


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (humaneval_row(entry_point="import os"), "entry_point: 'import os' is not a function name"),
        (humaneval_row(test=None), "test: missing"),
        (evalplus_release_row(base_input=[], plus_input=[]), "base_input: no input"),
        (evalplus_release_row(base_input=[1]), "base_input: not a list of argument lists"),
        (evalplus_release_row(plus_input="{"), "plus_input: not JSON"),
        (evalplus_release_row(plus_input=f"[[{'9' * 5000}]]"), "base_input, plus_input: Exceeds the limit"),
        (evalplus_release_row(atol="much"), "atol: not a number"),
        (evalplus_release_row(canonical_solution=""), "canonical_solution: missing"),
        (codeforces_row(tests="[]", data_source="codeforces"), "tests: none"),
        (official_codeforces_row(examples=[{"input": "\ud83d", "output": "1"}], official_tests=None), "lone surrogate"),
        (official_codeforces_row(description="\ud83d"), "prompt: holds a lone surrogate"),
        (
            livecodebench_function_row(
                public_test_cases=json.dumps([{"input": "[" * 201, "output": "1", "testtype": "functional"}])
            ),
            r"tests\.0\.input: nested deeper than 200 levels",
        ),
        ({"what": 1}, "of no known layout"),
    ],
)
def test_row_that_cannot_be_used_is_named_and_ends_the_evaluation(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=rf"set\.jsonl:2: .*{message}"):
        load(tmp_path, [humaneval_row(), row])


def test_two_problems_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"was used at set\.jsonl:1"):
        load(tmp_path, [humaneval_row(), humaneval_row()])


def checked(row: dict[str, Any], solution: str) -> bool:
    """Whether a solution gets to the end of its check, here in this process: solutions are ours."""
    script = solution + "\n" + humaneval_problem(row).tests[0].input
    try:
        exec(script, {"__name__": "__main__"})
    except AssertionError:
        return False
    return True


def test_evalplus_tolerances_are_its_own() -> None:
    almost = "def halves(numbers):\n    return [n / 2 + {} for n in numbers]\n"
    assert checked(evalplus_release_row(), HEAD + BODY)
    assert checked(evalplus_release_row(), almost.format("1e-9")), "floats are compared to 1e-6 unasked"
    assert not checked(evalplus_release_row(), almost.format("1e-3"))
    assert checked(evalplus_release_row(atol=0.01), almost.format("1e-3"))
    assert not checked(
        evalplus_release_row(atol=0.01), "def halves(numbers):\n    return tuple(n / 2 for n in numbers)\n"
    )
    assert checked(find_zero_row(), "def find_zero(xs):\n    return -xs[0] / xs[1] + 1e-6\n"), "any root is right"
    assert not checked(find_zero_row(), "def find_zero(xs):\n    return 9\n")


def test_solution_cannot_change_the_reference_by_its_names() -> None:
    assert not checked(
        evalplus_release_row(), "def halves(numbers):\n    return []\n\nright = reference = inputs = None\n"
    )


def test_checks_that_use_numpy_run_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_numpy(name: str, *rest: Any, **more: Any) -> Any:
        if name == "numpy" and name not in sys.modules:
            raise ImportError("no numpy here")
        return real(name, *rest, **more)

    for module in [m for m in sys.modules if m == "numpy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_numpy)
    try:
        assert checked(humanevalplus_row(), HEAD + BODY)
        assert checked(humanevalplus_row(), HEAD + "    return [n / 2 + 1e-9 for n in numbers]\n")
        assert not checked(humanevalplus_row(), HEAD + "    return [n / 2 + 1e-3 for n in numbers]\n")
        assert not hasattr(sys.modules["numpy"], "array"), "it was the stand-in"
    finally:
        sys.modules.pop("numpy", None)


FENCED = "Thus:\n```python\nprint(1)\n```\n"


@pytest.mark.parametrize(
    ("response", "last_block", "livecodebench"),
    [
        (FENCED, "print(1)\n", "print(1)"),
        (FENCED + "or\n```python\nprint(2)\n```", "print(2)\n", "print(2)"),
        (FENCED + "and then\n```python\nprint(2", "print(1)\n", "and then"),
        ("Write ``` twice: ```\nprint(1)", None, None),
        ("```print(1)\nprint(2)\n```", "print(2)\n", "print(2)"),
        ("no program", None, None),
    ],
)
def test_rules_for_the_program_of_a_response(response: str, last_block: str | None, livecodebench: str | None) -> None:
    assert program_of(response, Extraction.LAST_BLOCK) == last_block
    assert program_of(response, Extraction.LIVECODEBENCH) == livecodebench == livecodebench_block(response)


def test_rule_for_the_program_goes_with_the_problem(tmp_path: Path) -> None:
    [problem] = load(tmp_path, [own_row()], extraction="LiveCodeBench").problems
    assert problem.extraction is Extraction.LIVECODEBENCH
    assert json.loads(json.dumps(problem.extraction)) == "LiveCodeBench"


def test_a_released_set_is_judged_by_its_source_and_has_its_caveat_under_any_name(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub")
    lcb = load_benchmark(hub / "lcbv5", EvaluationDataset(name="cf", uri="/x"))
    assert {p.scoring for p in lcb.problems} == {Scoring.LIVECODEBENCH}
    assert lcb.notes == ()
    cf = load_benchmark(hub / "codeforces", EvaluationDataset(name="lcb", uri="/x"))
    assert {(p.source, p.scoring) for p in cf.problems} == {("codeforces", Scoring.STRICT)}
    assert "sample tests alone" in cf.notes[0], "the caveat is beside the number"


def test_a_released_set_whose_source_nothing_says_is_refused_by_its_field_with_the_mend(tmp_path: Path) -> None:
    [file] = sorted((write_hub(tmp_path / "hub") / "codeforces").glob("test-*"))
    (tmp_path / "sets").mkdir()
    moved = file.rename(tmp_path / "sets" / file.name)
    context = make_context(tmp_path, ["Base"])
    evaluation = context.config.stage.evaluate
    assert evaluation is not None

    def named(name: str) -> Context:
        datasets = [EvaluationDataset(name=name, uri=str(moved))]
        stage = context.config.stage.model_copy(
            update={"evaluate": evaluation.model_copy(update={"datasets": datasets})}
        )
        return replace(context, config=context.config.model_copy(update={"stage": stage}))

    with pytest.raises(
        BadConfig, match=r"tests are graded by their source: keep the hub's folders, or give"
    ) as refused:
        read_problem_sets(named("cf"))
    assert refused.value.field == "stage.evaluate.datasets.0.uri"
    said = load_benchmark(moved, EvaluationDataset(name="codeforces", uri=str(moved)))
    assert "sample tests alone" in said.notes[0]
