"""The key of an evaluation: whatever decides its figures gives another one, and what does not, does not."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import Context, make_context

import deepcoder_contracts
from deepcoder_contracts.recipe import Precision, Recipe
from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.stage import Evaluation, EvaluationDataset, Extraction, StageResources
from deepcoder_trainer.checkpoint import code
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.run import run_evaluate_stage


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """Versions and digests are kept by the process."""
    kept = (code.versions, code.grading_versions, code.code_digest)
    yield
    for each in kept:
        each.cache_clear()


async def key_of(context: Context) -> str:
    return (await run_evaluate_stage(context)).key


def with_recipe(context: Context, **changes: Any) -> Context:
    recipe = context.config.recipe.model_copy(update=changes)
    return replace(context, config=context.config.model_copy(update={"recipe": recipe}))


def with_stage(context: Context, **changes: Any) -> Context:
    stage = context.config.stage.model_copy(update=changes)
    return replace(context, config=context.config.model_copy(update={"stage": stage}))


def with_evaluation(context: Context, **changes: Any) -> Context:
    evaluation = context.config.stage.evaluate
    assert evaluation is not None
    return with_stage(context, evaluate=evaluation.model_copy(update=changes))


def with_dataset(context: Context, **changes: Any) -> Context:
    evaluation = context.config.stage.evaluate
    assert evaluation is not None
    return with_evaluation(context, datasets=[evaluation.datasets[0].model_copy(update=changes)])


IN_RECIPE: dict[str, Any] = {
    "seed": 8,
    "evaluation_temperature": 0.7,
    "evaluation_top_p": 1.0,
    "max_prompt_tokens": 65,
    "precision": Precision.FLOAT32,
    "tensor_parallel": 2,
    "reward": "evaluated_reward:worth",
}
OF_TRAINING = {
    *("adam_beta1", "adam_beta2", "prompts_per_step", "group_size", "optimizer_steps", "learning_rate", "weight_decay"),
    *("grad_clip", "clip_low", "clip_high", "temperature", "advantage", "overlong", "loss", "old_logprobs", "tis_cap"),
    *("importance", "entropy_coefficient", "kl_coefficient", "max_off_policy", "order", "refill", "refill_limit"),
    *("deterministic", "tokens_per_device", "activation_offload", "sequence_parallel"),
}
IN_EVALUATION: dict[str, Any] = {"context_tokens": 33, "samples_per_problem": 5}
IN_DATASET: dict[str, Any] = {"name": "other", "extraction": Extraction.LIVECODEBENCH}


async def test_every_setting_that_decides_figures_gives_another_key(tmp_path: Path, reward_module: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"skill": 0.5, "max_position_embeddings": 64}')

    def context() -> Context:
        return make_context(tmp_path, ["Base"], problems=2)

    changed = {name: with_recipe(context(), **{name: value}) for name, value in IN_RECIPE.items()}
    changed |= {name: with_evaluation(context(), **{name: value}) for name, value in IN_EVALUATION.items()}
    changed |= {name: with_dataset(context(), **{name: value}) for name, value in IN_DATASET.items()}
    changed["rope"] = with_stage(context(), rope=RopeScaling(type=RopeType.YARN, factor=2))
    changed["accelerators"] = with_stage(context(), resources=StageResources(learners=0, accelerators=True))
    keys = {name: await key_of(each) for name, each in changed.items()} | {"as it is": await key_of(context())}
    assert len(set(keys.values())) == len(keys), "two of them have one key"

    # What shares an engine's work out, and where things are, decides nothing.
    shared = with_stage(context(), resources=StageResources(samplers=2, learners=0))
    assert await key_of(shared) == keys["as it is"]


def test_a_new_setting_is_sorted_into_what_decides_an_evaluation_and_what_does_not() -> None:
    assert set(IN_RECIPE) | OF_TRAINING == set(Recipe.model_fields)
    beside = {"datasets", "targets", "every_steps"}  # what is measured, and when
    assert set(IN_EVALUATION) | beside == set(Evaluation.model_fields)
    by_content = {"uri", "since", "until", "contests"}  # their files' and problems' digests, and the window
    assert set(IN_DATASET) | by_content == set(EvaluationDataset.model_fields)


@pytest.fixture
def reward_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a reward function, and what it imports."""
    folder = tmp_path / "code"
    (folder / "kept").mkdir(parents=True)
    (folder / "evaluated_reward.py").write_text(
        "import json\n\n\ndef worth(problem, response):\n    from beside import share\n    return share(response)\n"
    )
    (folder / "beside.py").write_text("import kept.deep\n\n\ndef share(response):\n    return 1.0\n")
    (folder / "kept" / "deep.py").write_text("SHARE = 1\n")
    (folder / "kept" / "template.py").write_text("def {{ name }}:\n")
    (folder / "unrelated.py").write_text("1\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("evaluated_reward", "beside", "kept", "kept.deep", "unrelated"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("changed", ["evaluated_reward.py", "beside.py", "kept/deep.py", "unrelated.py"])
async def test_a_reward_that_was_mended_on_disk_gives_another_key(
    tmp_path: Path, reward_module: Path, changed: str
) -> None:
    def context() -> Context:
        return with_recipe(make_context(tmp_path, ["Base"], problems=2), reward="evaluated_reward:worth")

    before = await key_of(context())
    (reward_module / changed).write_text((reward_module / changed).read_text() + "# mended\n")
    assert (await key_of(context()) == before) is (changed == "unrelated.py")


async def test_what_python_compiles_of_a_reward_meanwhile_changes_no_key(tmp_path: Path, reward_module: Path) -> None:
    def context() -> Context:
        return with_recipe(make_context(tmp_path, ["Base"], problems=2), reward="evaluated_reward:worth")

    before = await key_of(context())
    compiled = reward_module / "kept" / "__pycache__"
    compiled.mkdir()
    (compiled / "deep.cpython-311.pyc.139872231").write_bytes(b"half of it")
    (compiled / "deep.cpython-311.pyc").write_bytes(b"all of it")
    assert await key_of(context()) == before


async def test_a_reward_whose_source_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    context = with_recipe(make_context(tmp_path, ["Base"], problems=2), reward="no_such_module:worth")
    with pytest.raises(BadConfig, match=r"source of recipe\.reward 'no_such_module:worth'") as refused:
        await key_of(context)
    assert refused.value.field == "recipe.reward"


@pytest.mark.parametrize("package", ["math-verify", "latex2sympy2-extended", "sympy", "torch", "transformers"])
async def test_another_version_of_what_samples_or_compares_gives_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before = await key_of(make_context(tmp_path, ["Base"], problems=2))
    told = importlib.metadata.version

    def upgraded(name: str) -> str:
        return told(name) + (".post1" if name == package else "")

    monkeypatch.setattr(code, "version", upgraded)
    code.versions.cache_clear()
    assert await key_of(make_context(tmp_path, ["Base"], problems=2)) != before


async def test_another_line_of_the_contracts_gives_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await key_of(make_context(tmp_path, ["Base"], problems=2))
    assert deepcoder_contracts.__file__ is not None
    copied = tmp_path / "deepcoder_contracts"
    shutil.copytree(Path(deepcoder_contracts.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(deepcoder_contracts, "__file__", str(copied / "__init__.py"))
    code.code_digest.cache_clear()
    assert await key_of(make_context(tmp_path, ["Base"], problems=2)) == before, "where the files are decides nothing"
    with (copied / "model_shape.py").open("a") as file:
        file.write("# changed\n")
    code.code_digest.cache_clear()
    assert await key_of(make_context(tmp_path, ["Base"], problems=2)) != before
