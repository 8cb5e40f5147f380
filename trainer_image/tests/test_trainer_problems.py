"""Readers, test selection, prompts and order of problems."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lazy_modules import LazyModule

from deepcoder_contracts import judgeable
from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_trainer.problems.dataset import DatasetError, load_dataset
from deepcoder_trainer.problems.draw_order import epoch_permutation, problem_index
from deepcoder_trainer.problems.prompt import encode_problems, encode_prompt, prompt_lengths
from deepcoder_trainer.problems.rows import RowError, check_judgeable, problem_from_row
from deepcoder_trainer.problems.tests import policy_for, select_tests

tokenizers, transformers = LazyModule("tokenizers"), LazyModule("transformers")


def own_row(**changes: Any) -> dict[str, Any]:
    return {"id": "p1", "prompt": "Add.", "tests": [{"input": "1 2", "output": "3"}], **changes}


def released_row(source: str, truth: Any, index: int | None = 7) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": "Solve it."}],
        "ability": "code",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(truth)},
        "extra_info": {"split": "train", "index": index, "reference": None},
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


# --- tests by source


@pytest.mark.parametrize("source", ["taco", "primeintellect", "SYNTHETIC-1", "codeforces"])
def test_fifteen_longest_inputs_at_twelve_seconds(source: str) -> None:
    tests = [TestCase(input="x" * n, output=str(n)) for n in range(20)]
    kept = select_tests(source, tests)
    assert [t.output for t in kept] == [str(n) for n in range(19, 4, -1)]
    assert policy_for(source).time_limit_s == 12


def test_livecodebench_keeps_all_at_six_seconds_with_its_own_scoring() -> None:
    tests = [TestCase(input="x" * n, output="") for n in range(20)]
    assert select_tests("livecodebench", tests) == tuple(tests)
    assert policy_for("livecodebench").time_limit_s == 6
    assert policy_for("livecodebench").scoring is Scoring.LIVECODEBENCH


def test_few_tests_and_other_sources_stay_as_written() -> None:
    tests = [TestCase(input=i, output="") for i in ("a", "ccc", "bb")]
    assert select_tests("taco", tests) == tuple(tests)
    many = tests * 10
    assert select_tests("mine", many) == tuple(many)


# --- rows


def test_functional_problem_keeps_its_name_when_tests_are_left_out() -> None:
    truth = {"inputs": [[[n] * n, n] for n in range(18)], "outputs": [[n] for n in range(18)], "fn_name": "solve"}
    problem = problem_from_row(released_row("taco", truth))
    assert problem.kind is Kind.FUNCTION
    assert problem.fn_name == "solve"
    assert len(problem.tests) == 15
    assert problem.tests[0] == TestCase(input=f"{json.dumps([17] * 17)}\n17", output="17")


LONG = "-" + "7" * 5000
"""An integer that Python neither reads nor prints."""


@pytest.mark.parametrize(
    "truth",
    [
        f'{{"inputs": [[{LONG}, {{"a": [{LONG}]}}], [1, 2]], "outputs": [[{LONG}], [2]], "fn_name": "f"}}',
        json.dumps({"inputs": [f'[{LONG}, {{"a": [{LONG}]}}]', "[1, 2]"], "outputs": [LONG, "2"], "fn_name": "f"}),
    ],
    ids=["values", "texts"],
)
def test_an_integer_longer_than_python_prints_is_a_number_like_others(truth: str) -> None:
    row = released_row("taco", None)
    row["reward_model"]["ground_truth"] = truth
    problem = problem_from_row(row)
    assert problem.tests[0] == TestCase(input=f'{LONG}\n{{"a": [{LONG}]}}', output=LONG)
    check_judgeable(problem)


def test_an_integer_longer_than_python_prints_is_read_from_standard_input() -> None:
    row = released_row("taco", None)
    row["reward_model"]["ground_truth"] = f'{{"inputs": [{LONG}, 2], "outputs": ["1", true]}}'
    assert problem_from_row(row).tests[0] == TestCase(input=LONG, output="1")


def test_a_long_integer_below_many_brackets_is_refused() -> None:
    row = released_row("taco", None)
    row["reward_model"]["ground_truth"] = (
        f'{{"inputs": [[{"[" * 900}{LONG}{"]" * 900}]], "outputs": [1], "fn_name": "f"}}'
    )
    with pytest.raises(RowError, match="nested too deep"):
        problem_from_row(row)


def test_an_integer_of_more_digits_than_a_judge_reads_is_refused() -> None:
    row = released_row("taco", None)
    row["reward_model"]["ground_truth"] = f'{{"inputs": [[{"7" * 50_001}]], "outputs": [1], "fn_name": "f"}}'
    with pytest.raises(RowError, match="an integer of more than 50000 digits"):
        problem_from_row(row)


@pytest.mark.parametrize(
    ("inputs", "outputs", "arguments", "returned"),
    [
        ([[1], [2]], [[3], [5]], ["1", "2"], ["3", "5"]),
        ([[1], [2]], [[[3]], [[5, 6]]], ["1", "2"], ["[3]", "[5, 6]"]),
        ([[1], [2]], [[3], [5, 6]], ["1", "2"], ["[3]", "[5, 6]"]),
        ([[1], [2]], [[3], []], ["1", "2"], ["[3]", "[]"]),
        ([[1], [2]], [3, [5]], ["1", "2"], ["3", "[5]"]),
        (["[[1, 2]]", "[[]]"], ["[3]", "[0]"], ["[1, 2]", "[]"], ["3", "0"]),
        (["[[1, 2]]", "[[]]"], ["[3, 3]", "[0]"], ["[1, 2]", "[]"], ["[3, 3]", "[0]"]),
        (["[1]", "[2]"], ["3", "null"], ["1", "2"], ["3", "null"]),
        (["abc", "12"], ["abc", "3"], ['"abc"', '"12"'], ['"abc"', '"3"']),
        ([["a"], ["b"]], [["x"], ["1"]], ['"a"', '"b"'], ['"x"', '"1"']),
        ([["a"], ["b"]], ["2", "[1]"], ['"a"', '"b"'], ['"2"', '"[1]"']),
    ],
    ids=[
        "wrapped numbers",
        "wrapped lists",
        "lists, one of them of one",
        "lists, one of them empty",
        "a number and a list",
        "JSON texts, wrapped",
        "JSON texts of lists",
        "JSON texts, not wrapped",
        "texts, one of which looks like a number",
        "wrapped texts",
        "texts, not wrapped",
    ],
)
def test_a_functions_released_tests_are_read_by_what_all_of_them_have_in_common(
    inputs: list[Any], outputs: list[Any], arguments: list[str], returned: list[str]
) -> None:
    expected = [{"input": i, "output": o} for i, o in zip(arguments, returned, strict=True)]
    taco = {"inputs": inputs, "outputs": outputs, "fn_name": "f"}
    synthetic = [{"input": i, "output": o, "fn_name": "f"} for i, o in zip(inputs, outputs, strict=True)]
    for source, truth in (("taco", taco), ("primeintellect", synthetic)):
        problem = problem_from_row(released_row(source, truth))
        assert [t.model_dump() for t in problem.tests] == expected


def test_released_layouts_of_every_source() -> None:
    taco = problem_from_row(released_row("taco", {"inputs": ["1\n", ["1", "2"]], "outputs": ["2\n", ["3"]]}))
    assert [t.model_dump() for t in taco.tests] == [{"input": "1\n", "output": "2\n"}, {"input": "1\n2", "output": "3"}]
    assert (taco.id, taco.kind, taco.fn_name) == ("taco-train-7", Kind.STDIN, None)

    synthetic = problem_from_row(
        released_row("primeintellect", [{"input": "[[1, 2], 3]", "output": "[6]", "fn_name": "f"}])
    )
    assert synthetic.kind is Kind.FUNCTION
    assert synthetic.tests[0] == TestCase(input="[1, 2]\n3", output="6")

    lcb = [{"input": '"ab"\n2', "output": '"abab"', "testtype": "functional", "metadata": {"func_name": "rep"}}]
    problem = problem_from_row(released_row("livecodebench", lcb))
    assert (problem.fn_name, problem.tests[0].input, problem.scoring) == ("rep", '"ab"\n2', Scoring.LIVECODEBENCH)
    stdin = [{"input": "1", "output": "1", "testtype": "stdin", "metadata": {"func_name": None}}]
    assert problem_from_row(released_row("livecodebench", stdin)).kind is Kind.STDIN

    codeforces = problem_from_row(released_row("codeforces", [{"input": "1", "output": "1"}], index=None))
    assert codeforces.id.startswith("codeforces-")
    assert codeforces.time_limit_s == 12


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x"}, "prompt: missing"),
        ({"id": "x", "prompt": 3, "tests": []}, "prompt is 3: Input should be a valid string: fix this field"),
        (own_row(tests=[]), r"tests: .*at least 1"),
        (own_row(tests=[{"input": "1"}]), r"tests\.0\.output"),
        (own_row(difficulty="easy"), "difficulty is .easy.: there is no such field: check its spelling, or .*metadata"),
        ({"id": "x", "prompt": "x", "test": [{"input": "1", "output": "1"}]}, "^test: there is no such field"),
        (
            {"id": "x", "prompt": "x", "tests": [{"input": "1", "outptu": "1"}]},
            r"^tests\.0\.outptu is '1': there is no",
        ),
        (own_row(kind="function"), "fn_name is needed"),
        (own_row(kind="function", fn_name="solve()"), "fn_name is 'solve\\(\\)': String should match pattern"),
        (own_row(kind="function", fn_name="a.b.c"), "fn_name is 'a.b.c': String should match pattern"),
        (own_row(tests=[{"input": "\ud83d", "output": ""}]), r"tests\.0\.input: holds a lone surrogate"),
        (own_row(time_limit_s=0), "time_limit_s"),
        (own_row(tests=[{"input": "1", "output": "1"}] * 10_001), "^tests: 10001, more than the 10000 that are judged"),
        (own_row(kind="script", scoring="taco-compat"), "^scoring: taco-compat knows no scripts: use strict$"),
        (
            own_row(kind="script", source="livecodebench"),
            r"^scoring: .*\(source livecodebench has scoring livecodebench\)$",
        ),
        (
            own_row(kind="function", fn_name="f", tests=[{"input": "x", "output": "1"}]),
            r"^tests\.0\.input: needs one JSON",
        ),
        ({**released_row("taco", {}), "data_source": ""}, "data_source: missing"),
        ({**released_row("taco", {}), "prompt": []}, "prompt: not one user message"),
        (released_row("taco", {"inputs": ["1"], "outputs": []}), "differ in length"),
        (released_row("taco", "no"), "ground_truth: not a list"),
        (
            released_row("primeintellect", [{"input": "1", "output": "1", "fn_name": f} for f in ("f", "g")]),
            "several functions",
        ),
        (released_row("livecodebench", [{"input": "", "output": "", "testtype": "functional"}]), "func_name"),
        ({**released_row("taco", {}), "reward_model": {"style": "rule"}}, "ground_truth: missing"),
        ({**released_row("taco", {}), "reward_model": {"ground_truth": "{"}}, "ground_truth: not JSON"),
    ],
)
def test_unusable_row_is_refused_by_field(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        problem_from_row(row)


# --- files


def test_formats_give_the_same_problems(tmp_path: Path) -> None:
    rows = [own_row(id=f"p{n}", time_limit_s=2.5) for n in range(40)]
    plain = write_jsonl(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(plain.read_text())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    first = load_dataset(plain)
    assert len(first.problems) == 40
    assert load_dataset(tmp_path / "b.jsonl.gz").problems == first.problems
    assert load_dataset(tmp_path / "c.parquet").problems == first.problems
    assert first.digest == "sha256:" + hashlib.sha256(plain.read_bytes()).hexdigest()


def test_folder_is_read_in_name_order_and_has_a_digest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [own_row(id="b")])
    write_jsonl(tmp_path / "a.jsonl", [own_row(id="a")])
    (tmp_path / "README.md").write_text("not data")
    dataset = load_dataset(tmp_path)
    assert [p.id for p in dataset.problems] == ["a", "b"]
    write_jsonl(tmp_path / "a.jsonl", [own_row(id="c")])
    assert load_dataset(tmp_path).digest != dataset.digest


def test_problem_whose_tests_no_judge_takes_is_refused_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [{"input": "1" * 400, "output": "3"}]
    path = write_jsonl(tmp_path / "a.jsonl", [own_row(), own_row(id="p2", tests=large)])
    assert len(load_dataset(path).problems) == 2
    monkeypatch.setattr(judgeable, "MAX_BODY_BYTES", 300)
    with pytest.raises(DatasetError, match=r"a\.jsonl:2: tests: 4\d\d bytes as JSON, more than the 300 that a judge"):
        load_dataset(path)
    with pytest.raises(RowError, match="tests: 4"):  # of another layout, as curation and the benchmarks read
        check_judgeable(replace(problem_from_row(own_row()), tests=(TestCase(input="1" * 400, output="3"),)))


def test_other_content_than_expected_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("not json")
    with pytest.raises(DatasetError, match=r"dataset\.sha256"):
        load_dataset(path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "x"', r"a\.jsonl:2: not JSON"),
        ("[1]", r"a\.jsonl:2: a list"),
        (json.dumps(own_row(id="p0")), r"a\.jsonl:2: id: 'p0' was used at a\.jsonl:1"),
        (json.dumps(own_row(fn_name="f")), r"a\.jsonl:2: fn_name is needed"),
    ],
)
def test_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(own_row(id="p0")) + "\n" + text + "\n")
    with pytest.raises(DatasetError, match=message):
        load_dataset(path)


def test_an_id_in_two_files_of_one_name_is_refused_with_their_folders(tmp_path: Path) -> None:
    for folder in ("apps", "taco"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "train.jsonl", [own_row(id="p0")])
    with pytest.raises(DatasetError, match=r"taco/train\.jsonl:1: id: 'p0' was used at apps/train\.jsonl:1"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_byte_order_mark_at_the_beginning_is_passed_over_and_nowhere_else(tmp_path: Path, name: str) -> None:
    rows = [own_row(id=n, prompt="\ufeffp") for n in ("a", "b")]
    text = json.dumps(rows) if name == "a.json" else "".join(json.dumps(row) + "\r\n" for row in rows)
    data = codecs.BOM_UTF8 + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [(p.id, p.prompt) for p in load_dataset(tmp_path / name).problems] == [("a", "\ufeffp"), ("b", "\ufeffp")]
    if name == "a.jsonl":
        (tmp_path / name).write_bytes(data + codecs.BOM_UTF8 + text.encode())
        with pytest.raises(DatasetError, match=r"a\.jsonl:3: not JSON"):
            load_dataset(tmp_path / name)


def test_damaged_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": "x"}\n' * 100)[:-12])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "c.jsonl").write_text("\n")
    (tmp_path / "d.csv").write_text("id\n")
    (tmp_path / "empty").mkdir()
    for name in ("a.jsonl.gz", "b.parquet", "c.jsonl", "d.csv", "e.jsonl", "empty"):
        with pytest.raises(DatasetError, match=name):
            load_dataset(tmp_path / name)


# --- order


def test_every_epoch_draws_every_problem_once_in_another_order() -> None:
    first = [problem_index(3, g, 50) for g in range(50)]
    second = [problem_index(3, g, 50) for g in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != [problem_index(4, g, 50) for g in range(50)]
    epoch_permutation.cache_clear()
    assert first == [problem_index(3, g, 50) for g in range(50)]


def test_order_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no problem"):
        problem_index(0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        problem_index(0, -1, 5)


# --- prompts


class CharacterTokenizer:
    """One token a character; with a template, `<text>`."""

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool, **_: Any
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        return f"<{messages[0]['content']}>"


def test_chat_template_is_used_where_there_is_one() -> None:
    assert bytes(encode_prompt("hi", CharacterTokenizer("x")).tolist()) == b"<hi>"
    assert bytes(encode_prompt("hi", CharacterTokenizer(None)).tolist()) == b"hi"
    assert encode_prompt("hi", CharacterTokenizer(None)).dtype == np.int32


def test_a_chat_template_that_names_the_day_asks_the_same_tomorrow() -> None:
    """As Llama 3.2's does: a run would go on with other prompts, and an evaluation under another key."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"2024-07-26": 0, "hi": 1, "other": 2}, unk_token="other"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0]['content'] }}"
    assert encode_prompt("hi", tokenizer).tolist() == [0, 1]
    assert prompt_lengths(["hi hi"], tokenizer) == [3]


def test_a_template_brings_its_special_tokens_and_a_text_without_one_is_given_them() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hi": 0, "other": 1, "<s>": 2}, unk_token="other"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    for template in (None, "<s> {{ messages[0]['content'] }}"):
        tokenizer.chat_template = template
        assert encode_prompt("hi", tokenizer).tolist() == [2, 0]
        assert prompt_lengths(["hi hi"], tokenizer) == [3]


def test_long_prompts_are_left_out_and_counted() -> None:
    problems = [problem_from_row(own_row(id=f"p{n}", prompt="x" * n)) for n in (3, 9, 5)]
    encoded = encode_problems(problems, CharacterTokenizer(None), max_prompt_tokens=5)
    assert [e.problem.id for e in encoded.kept] == ["p3", "p5"]
    assert encoded.too_long == ("p9",)
    with pytest.raises(ValueError, match=r"recipe\.maxPromptTokens 2 .* at least 3"):
        encode_problems(problems, CharacterTokenizer(None), max_prompt_tokens=2)
