"""What no program can be judged by: told alike wherever it is asked, with the field and the mend."""

import pytest

from deepcoder_contracts import judgeable
from deepcoder_contracts.judge import Kind, Scoring, TestCase, TestSet
from deepcoder_contracts.judgeable import Misfit, misfit, too_large


def ask(
    kind: Kind, scoring: Scoring, given: str = "1", output: str = "2", tolerance: float | None = None
) -> Misfit | None:
    return misfit(kind, scoring, tolerance, [TestCase(input=given, output=output)])


@pytest.mark.parametrize("scoring", [Scoring.LIVECODEBENCH, Scoring.TACO_COMPAT])
def test_scripts_and_tolerances_are_for_strict_alone(scoring: Scoring) -> None:
    assert ask(Kind.SCRIPT, scoring) == ("scoring", f"{scoring} knows no scripts: use strict")
    wrong = ask(Kind.STDIN, scoring, tolerance=1e-6)
    assert wrong is not None
    assert wrong.field == "float_tolerance"
    assert ask(Kind.SCRIPT, Scoring.STRICT, tolerance=1e-6) is None


@pytest.mark.parametrize("scoring", Scoring)
def test_what_no_judge_takes_is_told_whatever_the_scoring(scoring: Scoring) -> None:
    assert ask(Kind.FUNCTION, scoring, "[" * 200 + "]" * 200, "1") is None
    assert ask(Kind.FUNCTION, scoring, f"[{', '.join(['[1]'] * 300)}]", "1") is None, "long is not deep"
    deep = ask(Kind.FUNCTION, scoring, "1", "[" * 201 + "]" * 201)
    assert deep == ("tests.0.output", "nested deeper than 200 levels: flatten it, or leave the test out")
    assert ask(Kind.STDIN, scoring, "[" * 201) is None
    half = ask(Kind.STDIN, scoring, "a\ud83d")
    assert half is not None
    assert half.field == "tests.0.input"
    assert half.why.startswith("holds a lone surrogate at character 1")


@pytest.mark.parametrize(
    ("given", "output", "field"),
    [("x", "1", "tests.0.input"), ("1\nx", "1", "tests.0.input"), ("1", "", "tests.0.output"), ("[1]\n\n2", "3", None)],
)
def test_tests_of_a_function_are_json(given: str, output: str, field: str | None) -> None:
    for scoring in (Scoring.STRICT, Scoring.TACO_COMPAT):
        wrong = ask(Kind.FUNCTION, scoring, given, output)
        assert (wrong.field if wrong else None) == field
    assert ask(Kind.FUNCTION, Scoring.LIVECODEBENCH, given, output) is None
    assert ask(Kind.STDIN, Scoring.STRICT, given, output) is None


@pytest.mark.parametrize("text", ["x" * 500, "é\U0001f600" * 80, '\x01\n"' * 100], ids=["plain", "wide", "escaped"])
def test_tests_may_be_as_large_as_the_largest_request_and_no_byte_larger(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = (TestCase(input=text, output="1"), TestCase(input="2", output=text))
    size = len(TestSet(tests=list(tests)).model_dump_json().encode())
    monkeypatch.setattr(judgeable, "MAX_BODY_BYTES", size)
    assert too_large(tests) is None
    monkeypatch.setattr(judgeable, "MAX_BODY_BYTES", size - 1)
    assert too_large(tests) == (
        "tests",
        f"{size} bytes as JSON, more than the {size - 1} that a judge takes: leave some out",
    )
