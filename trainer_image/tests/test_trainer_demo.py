"""The demo's problems are right, repeatable and disjoint; its tokenizer and warm start do what they say."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from deepcoder_trainer.demo.families import FAMILIES, Family
from deepcoder_trainer.demo.generator import MOST_STEPS, Chain, Step, distinct_chains, draw_tests
from deepcoder_trainer.demo.programs import Sloppiness, fenced, sloppy_answer
from deepcoder_trainer.problems.dataset import load_dataset
from deepcoder_trainer.problems.extract import last_fenced_block
from deepcoder_trainer.problems.prompt import encode_prompt

# Runs each program on each input, and prints what all of them printed.
RUNNER = """
import contextlib, io, json, sys
answers = []
for program, inputs in json.load(sys.stdin):
    code, row = compile(program, "program", "exec"), []
    for text in inputs:
        sys.stdin, out = io.StringIO(text), io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(code, {})
        except Exception as error:
            out.write(repr(error))
        row.append(out.getvalue())
    answers.append(row)
print(json.dumps(answers))
"""


def run_programs(jobs: list[tuple[str, list[str]]]) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(jobs), capture_output=True, text=True, check=True, timeout=60
    )
    answers: list[list[str]] = json.loads(done.stdout)
    return answers


def chains(count: int, seed: int = 0) -> list[Chain]:
    return list(islice(distinct_chains(random.Random(seed)), count))


def test_right_programs_print_the_expected_outputs() -> None:
    rng = random.Random(1)
    drawn = [(c, draw_tests(c, rng)) for c in chains(600)]
    answers = run_programs([(c.program(), [t.input for t in tests]) for c, tests in drawn])
    for (chain, tests), answer in zip(drawn, answers, strict=True):
        assert answer == [t.output for t in tests], chain.statement


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_slip_is_told_from_the_right_line(family: Family) -> None:
    rng = random.Random(2)
    show = next(o for o in family.outputs if o.phrase in ("print all", "print them", "print it"))
    cases: list[tuple[str, Chain, str]] = []
    for operation in (*family.operations, *family.outputs):
        last = operation in family.outputs
        step = Step(operation, 3)
        chain = Chain(family, () if last else (step,), step if last else Step(show, 0))
        cases += [
            (operation.phrase, chain, chain.program().replace(step.line(), step.line(slip)))
            for slip in range(len(operation.slips))
        ]
    drawn = [[t for _ in range(15) for t in draw_tests(chain, rng)] for _, chain, _ in cases]
    answers = run_programs([(p, [t.input for t in tests]) for (_, _, p), tests in zip(cases, drawn, strict=True)])
    for (phrase, _, program), tests, answer in zip(cases, drawn, answers, strict=True):
        assert answer != [t.output for t in tests], f"{phrase}: {program}"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_a_line_tells_its_operation(family: Family) -> None:
    lines = [line for o in family.operations for line in (o.line, *o.slips)]
    assert len(set(lines)) == len(lines)
    assert len(family.operations) >= MOST_STEPS


def test_problems_are_distinct_repeatable_and_of_every_length() -> None:
    drawn = chains(1500)
    assert len({c.statement for c in drawn}) == 1500
    assert {len(c.steps) for c in drawn} == set(range(1, MOST_STEPS + 1))
    assert {c.family.name for c in drawn} == {f.name for f in FAMILIES}
    assert [c.statement for c in chains(1500)] == [c.statement for c in drawn]
    assert [c.statement for c in chains(50, seed=1)] != [c.statement for c in drawn[:50]]


def test_sloppiness_decides_how_answers_look() -> None:
    rng = random.Random(3)
    careful = Sloppiness(right=1, right_hard=1, right_verbose=1, verbose=0.5, unfenced=0)
    for chain in chains(40):
        answer = sloppy_answer(chain, rng, careful)
        program = last_fenced_block(answer)
        assert program is not None
        lines = [line for line in program.splitlines() if not line.startswith("#")]
        assert lines == chain.program().splitlines()
    chain = chains(1)[0]
    assert sloppy_answer(chain, rng, replace(careful, verbose=0)) == fenced(chain.program())
    assert last_fenced_block(sloppy_answer(chain, rng, replace(careful, unfenced=1))) is None
    assert sloppy_answer(chain, rng, Sloppiness(right=0, right_hard=0, verbose=0, unfenced=0)) != fenced(
        chain.program()
    )


def test_tokenizer_round_trips_splits_where_meant_and_is_repeatable(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from deepcoder_trainer.demo.tokenizer import train_tokenizer

    rng = random.Random(4)
    texts = [t for c in chains(300) for t in (c.statement, sloppy_answer(c, rng, Sloppiness()))]
    tokenizer = train_tokenizer(texts, 512, 256)
    assert tokenizer.get_vocab() == train_tokenizer(texts, 512, 256).get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    foreign = "Größe 😀 ```python\nprint('x')\n```"
    for text in [*texts[:20], foreign]:
        assert loaded.decode(loaded(text)["input_ids"]) == text
    # No token spans a newline, a digit, a separator or a fence together with something else.
    for token in loaded.get_vocab():
        text = loaded.convert_tokens_to_string([token])
        for boundary in ("\n", "; ", *"0123456789"):
            assert boundary not in text or text == boundary or text in "```python\n", repr(text)
    ids = encode_prompt("Read words; print them.", loaded)
    assert loaded.decode(ids) == "<|user|>Read words; print them.<|assistant|>"
    assert loaded.eos_token == "<|end|>"


def test_make_demo_is_deterministic_whole_and_loadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from deepcoder_trainer.demo import make
    from deepcoder_trainer.demo.warmstart import WarmStart

    monkeypatch.setattr(make, "TRAIN_PROBLEMS", 60)
    monkeypatch.setattr(make, "HELD_OUT_PROBLEMS", 20)
    settings = WarmStart(steps=2, batch_size=4)
    said: list[str] = []
    for name in ("a", "b"):
        make.make_demo(tmp_path / name, 5, said.append, settings)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]

    train, held_out = (load_dataset(tmp_path / "a" / f"{n}.jsonl").problems for n in ("train", "heldout"))
    assert (len(train), len(held_out)) == (60, 20)
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a" / "model")
    assert (
        encode_prompt(train[0].prompt, loaded).tolist()
        == loaded(f"<|user|>{train[0].prompt}<|assistant|>")["input_ids"]
    )
    # Beside a Qwen2 config AutoTokenizer brings Qwen's own rules: what it reads must still be one token a phrase.
    assert len(encode_prompt(train[0].prompt, loaded)) < 40
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    assert model.num_parameters() < 2_000_000
    assert model.config.eos_token_id == loaded.eos_token_id

    # The same inputs leave it as it is; others are refused, and nothing is touched.
    said.clear()
    make.make_demo(tmp_path / "a", 5, said.append, settings)
    assert said == [f"{tmp_path / 'a'} was made before with seed 5"]
    with pytest.raises(make.DemoExists, match="remove it"):
        make.make_demo(tmp_path / "a", 6, said.append, settings)
