"""What an evaluation measures: the newest export of a stage, a model by its bytes, and what is named by hand."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_world import make_context

from deepcoder_contracts.fit import Names
from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.stage import EvaluationDataset, JudgeBackend
from deepcoder_trainer.checkpoint.modelfiles import model_digest
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation import cli
from deepcoder_trainer.evaluation.cli import add_arguments, stage_config
from deepcoder_trainer.evaluation.run import run_evaluate_stage
from deepcoder_trainer.evaluation.targets import newest_export


def test_the_newest_export_is_the_highest_step_with_a_manifest_that_no_later_claim_overtook(tmp_path: Path) -> None:
    store = open_storage(f"file://{tmp_path}")
    keys = (
        "short/attempts/001/claim.json",
        "short/export/step-000010.a001/MANIFEST.json",
        "short/attempts/002/claim.json",
        "short/export/step-000020.a002/MANIFEST.json",
        "short/export/step-000040.a001/MANIFEST.json",
        "short/export/step-000030.a002/model.safetensors",
        "shorter/export/step-000050.a001/MANIFEST.json",
    )
    for second, key in enumerate(keys):
        store.put_bytes(key, b"{}")
        os.utime(tmp_path / key, (second, second))  # two may come within one tick of the file system's clock
    assert newest_export("short", store) == "short/export/step-000020.a002"
    assert newest_export("long", store) is None


def test_model_digest_sees_weights_and_words(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")
    first = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("not part of it")
    assert model_digest(tmp_path) == first
    (tmp_path / "tokenizer.json").write_text("{}")
    assert model_digest(tmp_path) != first


def parsed(words: list[str]) -> Any:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def options(**changes: Any) -> Any:
    values: Mapping[str, Any] = {"--model": "m", "--datasets": "d=x.jsonl", "--output-dir": "out", **changes}
    return parsed([word for item in values.items() for word in item if word is not None])


def test_options_by_hand_are_those_of_a_stage() -> None:
    dataset = "lcb=hf://a/b/c.jsonl,since=2024-08-01,until=2025-02-01,extraction=livecodebench,contests=/cf"
    config = stage_config(
        options(**{"--datasets": dataset, "--n": "8", "--max-length": "65536", "--engines": "4", "--tp": "2"})
    )
    evaluation = config.stage.evaluate
    assert evaluation is not None
    [found] = evaluation.datasets
    assert (found.name, found.uri, found.contests) == ("lcb", "hf://a/b/c.jsonl", "/cf")
    assert (found.since, found.until, found.extraction) == ("2024-08-01", "2025-02-01", "LiveCodeBench")
    assert (evaluation.samples_per_problem, config.stage.context_tokens) == (8, 65536)
    assert (config.stage.resources.samplers, config.recipe.tensor_parallel) == (4, 2)
    assert stage_config(options(**{"--rope": "yarn:2"})).stage.rope == RopeScaling(type=RopeType.YARN, factor=2)
    given = stage_config(options(**{"--model": "m"}))
    assert given.model.uri == str(Path("m").absolute())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--datasets": "x.jsonl"}, "write NAME=URI"),
        ({"--datasets": "d=x.jsonl,since=2024-13-01"}, "since 2024-13-01 is not a day of the calendar"),
        ({"--datasets": "d=x.jsonl,since=2024-08-01,until=2024-08-01"}, "is not before until 2024-08-01"),
        ({"--datasets": "d=x.jsonl,extraction=all"}, "extraction is one of last-block, livecodebench"),
        ({"--n": "0"}, "^--n is 0: "),
        ({"--top-p": "0"}, "^--top-p is 0.0: "),
        ({"--temperature": "-1"}, "^--temperature is -1.0: "),
        ({"--seed": "-1"}, "^--seed is -1: "),
        ({"--max-length": "0"}, "^--max-length is 0: "),
        ({"--max-prompt-length": "0"}, "^--max-prompt-length is 0: "),
        ({"--tp": "9"}, "^--tp is 9: "),
        ({"--engines": "0"}, "^--engines is 0: "),
        ({"--rope": "long"}, "write Yarn:FACTOR or Dynamic:FACTOR"),
        ({"--responses": "d=r.jsonl"}, "either --model, or --responses"),
        ({"--judge": "pool"}, "needs --judge-token-file"),
        *(
            ({"--judge": judge, "--judge-token-file": "t"}, f"--judge '{re.escape(judge)}': write HOST, HOST:PORT or")
            for judge in ("pool:0", "pool:99999", "pool:²", "::1", "[::1", "http://pool", "me@pool", ":80", "")
        ),
        ({"--judge-workers": "0"}, "--judge-workers 0: give 1 or more"),
    ],
)
def test_wrong_options_by_hand_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        stage_config(options(**change))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "0"], "^--seed: with --responses no model is sampled: give --model instead, or leave it out$"),
        (["--rope", "yarn:2", "--max-prompt-length", "9"], "^--max-prompt-length, --rope: .* or leave them out$"),
    ],
)
def test_options_about_sampling_are_refused_where_responses_are_given(more: list[str], message: str) -> None:
    given = ["--responses", "d=r.jsonl", "--datasets", "d=x.jsonl", "--output-dir", "out"]
    assert stage_config(parsed([*given, "--n", "8"])).recipe.seed == 0
    with pytest.raises(BadConfig, match=message):
        stage_config(parsed([*given, *more]))


def test_every_option_about_sampling_but_the_number_says_its_default_and_has_none_of_its_own() -> None:
    others = {"model", "responses", "datasets", "output_dir", "again", "n", "judge", "judge_token_file"}
    given = vars(options())
    assert given.keys() - others - {"judge_workers"} == cli._SAMPLING.keys()
    assert [name for name in cli._SAMPLING if given[name] is not None] == []
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = " ".join(parser.format_help().split())
    for name, default in cli._SAMPLING.items():
        told = rf"--{name.replace('_', '-')} {name.upper()} [^-]*\bdefault {re.escape(f'{default or 0:g}')}[), ]"
        assert default is None or default is False or re.search(told, words), name


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [("pool", "pool", 8080), ("pool.ns.svc:81", "pool.ns.svc", 81), ("[fd00::1]:81", "fd00::1", 81)],
)
def test_a_pool_is_named_by_host_and_port_or_by_an_address(given: str, host: str, port: int) -> None:
    judge = stage_config(options(**{"--judge": given, "--judge-token-file": "t"})).judge
    assert (judge.backend, judge.host, judge.port) == (JudgeBackend.POOL, host, port)


def test_day_that_yaml_made_a_date_of_is_the_day() -> None:
    document = yaml.safe_load("{name: lcb, uri: /lcb, since: 2024-08-01, until: '2025-02-01'}")
    dataset = EvaluationDataset.model_validate(document)
    assert (dataset.since, dataset.until) == ("2024-08-01", "2025-02-01")


async def test_a_limit_that_leaves_out_all_problems_is_called_what_the_command_calls_it(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base"], problems=2)
    recipe = context.config.recipe.model_copy(update={"max_prompt_tokens": 1})
    names = Names(max_prompt_tokens="--max-prompt-length")
    context = replace(context, config=context.config.model_copy(update={"recipe": recipe}), names=names)
    with pytest.raises(BadConfig, match=r"^held: --max-prompt-length 1 leaves out all 2 problems") as refused:
        await run_evaluate_stage(context)
    assert refused.value.field == "--max-prompt-length"
