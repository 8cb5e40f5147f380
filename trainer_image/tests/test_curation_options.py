"""What `curate` refuses of its options about a model, by their own names and before any judge is asked."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from curation_world import own_row, write_jsonl

from deepcoder_trainer.__main__ import main
from deepcoder_trainer.curation import cli


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command with judges elsewhere, which it does not reach."""
    sets = [f"x={write_jsonl(tmp_path / 'x.jsonl', [own_row()])}"]
    judges = ["--judge", "pool.invalid", "--judge-token-file", str(tmp_path / "token")]
    return ["curate", *sets, *judges, "--output-dir", str(tmp_path / "out")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "8"], "--samples: without --model no model is sampled: give --model, or leave it out"),
        (["--float32", "--top-p", "0.9"], "--top-p, --float32: without --model no model is sampled: give --model, or"),
        (["--tokenizer", "/m", "--seed", "0"], "--seed: without --model no model is sampled"),
        (["--pass-rates", "/r", "--accelerators"], "--accelerators: without --model no model is sampled"),
    ],
)
def test_options_about_sampling_a_model_are_refused_without_a_model(
    command: list[str], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*command, *options]) == 64
    assert message in capsys.readouterr().err


def test_every_option_about_a_model_is_refused_without_one_and_says_its_default() -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    [group] = [group for group in parser._action_groups if "pass rates of a model" in str(group.title)]
    actions = {action.dest: action for action in group._group_actions}
    assert actions.keys() == {"model", *cli._SAMPLING}
    assert [name for name, action in actions.items() if action.default is not None] == []
    for name, default in cli._SAMPLING.items():
        assert default is False or f"default {default:g}" in str(actions[name].help), name


def test_what_a_model_cannot_do_is_told_before_anything_is_judged(
    tmp_path: Path, command: list[str], make_coder_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command += ["--model", str(make_coder_model())]
    for option, value, message in (
        ("--max-length", "999999", "--max-length is 999999: with --max-prompt-tokens 2048 a sequence has up to"),
        ("--temperature", "-1", "--temperature is -1.0: "),
        ("--top-p", "0", "--top-p is 0.0: "),
        ("--tp", "9", "--tp is 9: "),
        ("--tp", "3", "--tp is 3, but the model has"),
    ):
        assert main([*command, option, value]) == 64, option
        told = capsys.readouterr().err
        assert message in told
        assert "stages[" not in told
    assert not (tmp_path / "out").exists(), "no journal was begun"


def test_an_error_about_a_model_names_options_and_leaves_the_words_of_its_path_alone(
    tmp_path: Path, command: list[str], make_coder_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "samplers" / "recipe.tensorParallel"
    shutil.copytree(make_coder_model(), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    assert main([*command, "--model", str(model), "--tp", "3"]) == 64
    told = capsys.readouterr().err
    assert f"the model at {model} is quantized" in told
    assert "--tp is 3, but the model has" in told
