"""Rows of every published layout become records, and what is no such row is named by field."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from curation_world import (
    ADD,
    ADD_INPUTS,
    ADD_OUTPUTS,
    ADDS,
    WRONG,
    codeforces_row,
    livecodebench_function_row,
    livecodebench_row,
    mathematics_row,
    official_codeforces_row,
    own_row,
    packed,
    synthetic_row,
    taco_function_row,
    taco_row,
)

from deepcoder_contracts.curation import Layout
from deepcoder_contracts.judge import Kind, Scoring
from deepcoder_trainer.curation.output import own_row as own_row_of
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.problems.readers import Unwanted, reader_for
from deepcoder_trainer.problems.record import Record
from deepcoder_trainer.problems.rows import RowError, problem_from_row
from deepcoder_trainer.problems.statement import bare, livecodebench_prompt, mathematics_prompt


def read(row: dict[str, Any], name: str = "set") -> Record:
    return reader_for(row)[1](row, name)


def test_taco_is_read_with_its_examples_as_tests_and_its_solutions() -> None:
    record = read(taco_row())
    assert reader_for(taco_row())[0] is Layout.TACO
    assert (record.source, record.kind, record.prompt) == ("taco", Kind.STDIN, ADD)
    assert record.tests == tuple(zip(ADD_INPUTS, ADD_OUTPUTS, strict=True))
    assert record.solutions == (WRONG, ADDS)
    assert record.solutions_expected
    assert record.metadata == {"difficulty": "EASY", "url": "https://example.invalid/1/A"}


def test_taco_function_with_its_solutions_as_json_text() -> None:
    record = read(taco_function_row())
    assert (record.kind, record.fn_name) == (Kind.FUNCTION, "double")
    assert record.tests[3] == ("3", "6")
    assert record.solutions == ("def double(n):\n    return 2 * n\n",)


@pytest.mark.parametrize("as_python", [False, True], ids=["JSON", "Python literal"])
def test_synthetic_rows_are_read_whether_json_or_written_as_python(as_python: bool) -> None:
    record = read(synthetic_row(as_python=as_python))
    assert record.source == "primeintellect"
    assert record.tests[1] == ("2\n", "4\n")
    assert record.solutions == ("n = int(input())\nprint(n * n)\n",)
    assert record.prompt.startswith("Solve the following")
    assert record.statement.startswith("A square garden")
    assert record.statement.endswith("that is read.")


def test_synthetic_problem_in_another_language_is_unwanted_not_broken() -> None:
    with pytest.raises(Unwanted, match="javascript"):
        read(synthetic_row(language="javascript"))


def test_synthetic_solution_without_a_fence_is_none() -> None:
    assert read(synthetic_row(gold_standard_solution="I do not know")).solutions == ()


def test_livecodebench_has_public_and_hidden_tests_and_a_date() -> None:
    record = read(livecodebench_row())
    assert record.source == "livecodebench"
    assert len(record.tests) == 6
    assert record.tests[0] == ("3\n", "cba\n")
    assert record.tests[5] == ("4\n", "xxxx\n")
    assert record.date == datetime.date(2023, 8, 12)
    assert not record.solutions_expected
    assert record.metadata is not None
    assert record.metadata["question_id"] == "abc300_a"


def test_livecodebench_hidden_tests_may_be_plain_json() -> None:
    hidden = [{"input": "1\n", "output": "1\n", "testtype": "stdin"}]
    assert read(livecodebench_row(private_test_cases=json.dumps(hidden))).tests[1:] == (("1\n", "1\n"),)


def test_livecodebench_rows_with_starter_code_are_functions_of_that_name() -> None:
    record = read(livecodebench_function_row())
    assert (record.kind, record.fn_name) == (Kind.FUNCTION, "repeat")
    assert record.tests[2] == ('"a"\n2', '"aa"')
    assert "class Solution" in record.prompt
    assert record.strict().scoring is Scoring.STRICT


@pytest.mark.parametrize(
    ("starter", "told", "code"),
    [
        ("", "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the "
         "sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it "
         "reads the inputs, runs the algorithm and writes output to STDOUT.", "# YOUR CODE HERE"),
        ("class Solution:\n    ", "You will use the following starter code to write the solution to the problem and "
         "enclose your code within delimiters.", "class Solution:\n    "),
    ],
)  # fmt: skip
def test_livecodebench_is_asked_to_the_letter_as_the_released_training_and_evaluation_asked(
    starter: str, told: str, code: str
) -> None:
    """rllm/data/utils.py, fetch_live_code_bench_system_prompt, at the release."""
    prompt = livecodebench_prompt(" What?\nNo", starter)
    assert prompt == (
        "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
        "correct Python program that matches the specification and passes all tests.\n\n What?\nNo"
        f"### Format: {told}\n```python\n{code}\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    assert bare(prompt) == "What?\nNo"


def test_released_sets_are_named_by_their_input() -> None:
    record = read(codeforces_row(), "codeforces")
    assert (record.source, len(record.tests), record.solutions_expected) == ("codeforces", 2, False)
    released = {
        "problem": ADD,
        "tests": json.dumps({"inputs": ADD_INPUTS, "outputs": ADD_OUTPUTS}),
        "solutions": [ADDS],
    }
    taco = read(released, "taco")
    assert (taco.source, taco.solutions, taco.solutions_expected) == ("taco", (ADDS,), True)
    cases = [{"input": "1", "output": "1", "testtype": "stdin", "metadata": {"func_name": None}}]
    lcb = read({"problem": "What?", "tests": cases, "starter_code": ""}, "lcbv5")
    assert lcb.source == "livecodebench"
    assert "### Format" in lcb.prompt


def test_released_tests_of_which_only_some_name_their_function_are_of_that_function() -> None:
    named = {"input": "1", "output": "2", "testtype": "functional", "metadata": {"func_name": "f"}}
    unnamed = {"input": "2", "output": "3", "testtype": "functional"}
    record = read({"problem": "What?", "tests": [named, unnamed], "metadata": {"func_name": "f"}}, "lcbv5")
    assert (record.fn_name, len(record.tests)) == ("f", 2)


def test_codeforces_has_its_own_limits_official_tests_and_a_date() -> None:
    record = read(official_codeforces_row())
    assert reader_for(official_codeforces_row())[0] is Layout.CODEFORCES
    assert (record.source, record.time_limit_s, record.memory_limit_mb) == ("codeforces", 2.0, 256)
    assert record.tests == (("2\n5 7\n", "12\n"), ("1\n3\n", "3\n"))
    assert record.date == datetime.date(2023, 11, 14)
    assert not record.solutions_expected
    assert record.metadata == {"rating": 800, "title": "Sum", "contest_id": "1900"}
    assert "Example input\n```\n2\n5 7\n```\nExample output\n```\n12\n```" in record.prompt
    assert "greedy" not in record.prompt, "tags give the way to solve it away"
    assert record.statement.startswith("Numbers are given.\nThe first line")
    assert read(official_codeforces_row(official_tests=None)).tests == (("2\n5 7\n", "12\n"),)


@pytest.mark.parametrize(
    "change",
    [{"generated_checker": "def check(): ..."}, {"interaction_format": "Ask and read."}, {"input_mode": "file"}],
    ids=["checker", "dialogue", "files"],
)
def test_codeforces_problems_that_outputs_do_not_decide_are_unwanted(change: dict[str, Any]) -> None:
    with pytest.raises(Unwanted, match=next(iter(change))):
        read(official_codeforces_row(**change))


@pytest.mark.parametrize(
    ("nulls", "more", "why"),
    [
        (("input_format", "output_format"), {"interaction_format": "Ask and read."}, "a dialogue"),
        (("description",), {}, "a problem without a description"),
    ],
    ids=["interactive", "no statement"],
)
def test_codeforces_problems_of_which_a_part_is_null_are_told_by_their_kind(
    nulls: tuple[str, ...], more: dict[str, Any], why: str
) -> None:
    whole = official_codeforces_row(**more)
    of_parquet = {name: value for name, value in whole.items() if name not in nulls}  # its nulls are left out
    for row in (of_parquet, {**whole, **dict.fromkeys(nulls)}):
        with pytest.raises(Unwanted, match=why):
            read(row)


def test_a_released_row_that_says_its_contest_is_a_released_row() -> None:
    assert reader_for(codeforces_row(contest_id="1234", index="A", title="Robot"))[0] is Layout.RELEASED


def test_codeforces_problem_that_reads_nothing_has_an_empty_input() -> None:
    row = official_codeforces_row(official_tests=[{"input": None, "output": "42\n"}])
    del row["input_format"]
    record = read(row)
    assert record.tests == (("", "42\n"),)
    assert "\n\nInput\n" not in record.prompt


def test_a_layout_that_is_asked_for_is_held_to() -> None:
    assert reader_for(taco_row(), Layout.TACO)[0] is Layout.TACO
    with pytest.raises(RowError, match="layout LiveCodeBench has public_test_cases, question_content"):
        reader_for(taco_row(), Layout.LIVECODEBENCH)
    both = {**mathematics_row(), "tests": "[]"}
    assert reader_for(both)[0] is Layout.RELEASED
    assert reader_for(both, Layout.MATHEMATICS)[0] is Layout.MATHEMATICS


def test_what_curation_writes_it_reads_again() -> None:
    row = own_row(tests=None, answer="25", solution=None)
    record = read({k: v for k, v in row.items() if v is not None})
    assert (record.answer, record.tests, record.id) == ("25", (), "mine-1")


def test_a_tolerance_reaches_whoever_judges_and_is_for_strict_comparison_alone() -> None:
    record = read(own_row(float_tolerance=1e-6))
    assert Record.of_line(record.line()).float_tolerance == 1e-6
    assert record.strict().float_tolerance == 1e-6
    assert JudgedProblem(record.strict()).submission("", "k").request.float_tolerance == 1e-6
    assert problem_from_row(own_row(float_tolerance=1e-6)).float_tolerance == 1e-6
    assert own_row_of(record, None, {})["float_tolerance"] == 1e-6
    with pytest.raises(RowError, match=r"float_tolerance: .*\(source lcbv5 has scoring livecodebench\)"):
        read(own_row(float_tolerance=1e-6, source="lcbv5"))


def test_mathematics_has_an_answer_and_no_tests() -> None:
    record = read(mathematics_row(), "deepscaler")
    assert (record.source, record.answer, record.tests) == ("deepscaler", "25", ())
    assert record.prompt.endswith("\\boxed{}.")
    assert read(mathematics_row(answer=204), "aime").answer == "204"


def test_our_layout_keeps_its_names_and_limits() -> None:
    record = read(own_row(time_limit_s=3, memory_limit_mb=64, scoring="livecodebench"))
    assert (record.id, record.source, record.time_limit_s, record.memory_limit_mb) == ("mine-1", "mine", 3, 64)
    assert record.scoring is Scoring.LIVECODEBENCH
    assert record.strict().scoring is Scoring.STRICT
    assert record.at("f:1", 0, "train").id == "mine-1"


def test_a_record_survives_the_spool() -> None:
    for row in (taco_row(), taco_function_row(), synthetic_row(), livecodebench_row(), mathematics_row(), own_row()):
        record = read(row).at("file:3", 2, "train")
        assert Record.of_line(record.line()) == record


@pytest.mark.parametrize(
    "prompt",
    [
        livecodebench_prompt("Add  a and b.", ""),
        livecodebench_prompt("Add  a and b.", "def add(a, b):"),
        mathematics_prompt("Add  a and b."),
        "Solve the following coding problem using the programming language python:\n\nAdd  a and b.\n\n"
        "The input will be stdin and you should print your solution to stdout\n\n\n"
        "Now solve the problem and return the code.",
        "### Question:\nAdd  a and b.",
        "  Add  a and b.\n",
    ],
)
def test_instructions_are_no_part_of_a_statement(prompt: str) -> None:
    assert bare(prompt) == "Add  a and b."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "?"}, r"columns \['text'\]: of no known layout"),
        (taco_row(question=7), "question: not a text"),
        (taco_row(input_output="{"), "input_output: not JSON"),
        (taco_row(input_output="[" * 100_000), "input_output: not JSON"),
        (
            taco_row(input_output='{"inputs": ["1"], "outputs": []}'),
            "input_output: inputs and outputs differ in length",
        ),
        (taco_row(input_output="9" * 50_001), "input_output: not JSON"),
        (
            taco_row(input_output=json.dumps({"inputs": [[1]], "outputs": [[1]], "fn_name": "os.system;x"})),
            "not a function name",
        ),
        (
            taco_row(input_output=json.dumps({"inputs": [[1]], "outputs": [[1]], "fn_name": ["f"]})),
            "not a function name",
        ),
        (synthetic_row(verification_info="{1: __import__('os')}"), "verification_info: neither JSON nor a Python"),
        (synthetic_row(verification_info="[1]"), "verification_info: not an object"),
        *(
            (
                synthetic_row(
                    verification_info=str({"test_cases": [{"input": given, "output": [1], "fn_name": function}]})
                ),
                r"verification_info\.test_cases: .*: give texts, numbers, lists and objects",
            )
            for function in (None, "f")
            for given in ([{1, 2}], [b"1"], *([[{(1, 2): 3}]] if function else []))
        ),
        (
            taco_row(input_output=f'{{"inputs": [{"[" * 600}1{"]" * 600}], "outputs": ["1"]}}'),
            "input_output: nested too deep",
        ),
        (synthetic_row(verification_info="(" * 10_000), "verification_info: neither JSON nor a Python"),
        (livecodebench_row(contest_date="May"), "contest_date: 'May' is not a date"),
        (livecodebench_row(public_test_cases='{"a": 1}'), "public_test_cases: not a list"),
        (livecodebench_row(private_test_cases="not base64!"), "private_test_cases: neither JSON nor base64"),
        (livecodebench_row(private_test_cases=packed("text")), "private_test_cases: not a list"),
        (
            livecodebench_row(public_test_cases='[{"input": "1", "output": "1", "testtype": "functional"}]'),
            "several functions|func_name",
        ),
        (official_codeforces_row(time_limit=0), "time_limit: '0': give a number above 0"),
        (official_codeforces_row(memory_limit="256"), "memory_limit: '256': give a number"),
        (official_codeforces_row(contest_start=1e300), "contest_start: '1e.300' is not a date"),
        (official_codeforces_row(description=["?"]), "description: not a text"),
        (mathematics_row(answer=""), "answer: missing"),
        (mathematics_row(answer=True), "answer: missing"),
        (mathematics_row(answer="1" * 501), "answer: 501 characters"),
        (own_row(tests=[]), "tests: "),
    ],
)
def test_unusable_row_of_each_layout_is_refused_by_field(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        read(row)
