"""Bad configuration is refused at once, with the field, its value and the mend; a local run expands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_contracts.gate import Otherwise
from deepcoder_contracts.model_shape import kv_bytes_per_token
from deepcoder_contracts.recipe import Recipe, StageRecipe
from deepcoder_contracts.stage import StageConfig, StageSettings
from deepcoder_trainer.config import load_config
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.localrun import LocalRun, held_by_gate
from deepcoder_trainer.sampler.settings import engine_settings
from deepcoder_trainer.tokenizer import load_tokenizer

LOCAL: dict[str, Any] = {
    "kind": "LocalRun",
    "name": "mine",
    "model": {"uri": "/m"},
    "dataset": {"uri": "/d.jsonl"},
    "recipe": {"promptsPerStep": 4, "optimizerSteps": 2},
    "stages": [
        {"name": "short", "type": "Train", "contextTokens": 16, "maxSteps": 4},
        {
            "name": "test",
            "type": "Evaluate",
            "contextTokens": 64,
            "evaluate": {"datasets": [{"name": "held", "uri": "/h"}], "contextTokens": 128},
        },
    ],
    "storage": {"uri": "file:///tmp/somewhere"},
}


def write(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def changed(**fields: Any) -> dict[str, Any]:
    return {**LOCAL, **fields}


def with_recipe(index: int, recipe: dict[str, Any]) -> dict[str, Any]:
    stages = list(LOCAL["stages"])
    stages[index] = {**stages[index], "recipe": recipe}
    return changed(stages=stages)


@pytest.mark.parametrize(
    ("document", "field", "message"),
    [
        ("[1, 2]", None, "holds no object"),
        ("{", "--config", "neither JSON nor YAML"),
        ("kind: 2026-02-30", "--config", "holds a value that is none of its type, such as a date"),
        ("kind: !!bool maybe", "--config", "holds a value that is none of its type"),
        ("kind: " + "[" * 5000, "--config", "nested too deeply"),
        ({"kind": "Deployment"}, "kind", "use one of StageConfig, LocalRun"),
        (changed(recipe={"groupSize": 1}), "recipe.groupSize", "recipe.groupSize is 1: .*greater than or equal to 2"),
        (changed(recipe={"groupsize": 8}), "recipe.groupsize", "there is no such field"),
        (changed(recipe={"promptsPerStep": 3}), "recipe", "make promptsPerStep a multiple"),
        (changed(recipe={"refill": True, "deterministic": True}), "recipe", "set refill: false"),
        (changed(recipe={"order": "Window", "maxOffPolicy": 0}), "recipe", "set maxOffPolicy: 1"),
        (changed(dataset=None), None, "set dataset.uri"),
        (changed(stages=[LOCAL["stages"][0]] * 2), None, "same name"),
        (with_recipe(0, {"optimizerSteps": 3}), None, r"stages\[short\].recipe: .*make promptsPerStep a multiple"),
        (with_recipe(0, {"groupSize": 1}), "stages.0.recipe.groupSize", "is 1: .*greater than or equal to 2"),
        (with_recipe(0, {"seed": 1}), "stages.0.recipe.seed", "there is no such field"),
        (with_recipe(1, {"learningRate": 1e-5}), None, r"stages\[test\].recipe: an Evaluate stage trains nothing"),
        (with_recipe(0, {"tokensPerDevice": 8}), "recipe.tokensPerDevice", "raise it to at least"),
        (changed(storage={"uri": "ftp://x"}), "storage.uri", "storage.uri is 'ftp://x': give s3://bucket/prefix or "),
        (changed(storage={"uri": "/my/run"}), "storage.uri", r"here file:///my/run$"),
        (changed(dataset={"uri": "d.jsonl"}), "dataset.uri", rf"or a path from /.*, here file://{Path.cwd()}/d.jsonl$"),
        ({k: v for k, v in LOCAL.items() if k != "kind"}, "kind", "kind: missing: .*write kind: LocalRun"),
    ],
)
def test_a_wrong_file_is_refused_with_field_value_and_mend(
    tmp_path: Path, document: Any, field: str | None, message: str
) -> None:
    with pytest.raises(BadConfig, match=message) as caught:
        load_config(write(tmp_path, document))
    assert caught.value.field == field


def test_a_model_without_a_tokenizer_is_refused_with_what_to_put_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    with pytest.raises(BadConfig, match=r"model\.uri .* has no usable tokenizer: .*put the tokenizer.json beside") as e:
        load_tokenizer(tmp_path)
    assert e.value.field == "model.uri"


def test_a_stage_has_its_own_batch_and_learning_rate(tmp_path: Path) -> None:
    own = {"promptsPerStep": 9, "groupSize": 16, "optimizerSteps": 3, "learningRate": 1e-5, "overlong": "Off"}
    run = load_config(write(tmp_path, with_recipe(0, {**own, "tokensPerDevice": 4096})))
    assert isinstance(run, LocalRun)
    recipe = run.stage_config(0, 1, None).recipe
    shown = recipe.model_dump(mode="json", by_alias=True)
    assert {name: shown[name] for name in own} == own
    assert recipe.tokens_per_device == 4096
    assert run.stage_config(1, 1, None).recipe == run.recipe
    plain = LocalRun.model_validate(LOCAL)
    assert run.config_digest != plain.config_digest
    assert b'"recipe":null' not in plain.to_json(), "digests of runs without it are what they were"


def test_bounds_of_a_stages_recipe_are_the_recipes() -> None:
    for name, field in StageRecipe.model_fields.items():
        assert field.metadata == Recipe.model_fields[name].metadata, name
        assert field.default is None


def test_a_colocated_train_stage_is_synchronous(tmp_path: Path) -> None:
    stage = {**LOCAL["stages"][0], "placement": "Colocated"}
    with pytest.raises(BadConfig, match="set maxOffPolicy: 0"):
        load_config(write(tmp_path, changed(stages=[stage], recipe={"maxOffPolicy": 1})))
    load_config(write(tmp_path, changed(stages=[stage], recipe={"maxOffPolicy": 0})))


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        load_config(write(tmp_path, changed(recipe={"groupSize": 1, "temperature": 9}, name="Bad Name")))
    assert len(str(caught.value).splitlines()) == 3


def test_the_command_exits_64_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    path = write(tmp_path, changed(recipe={"groupSize": 1}))
    code = (
        "import sys; from deepcoder_trainer.__main__ import main; code = main(['run', '--config', sys.argv[1]]); "
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'boto3'} & set(sys.modules); "
        "print(code, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "64 []"
    assert "recipe.groupSize is 1" in done.stderr


def test_help_of_every_command_is_given_without_anything_heavy() -> None:
    code = """
import sys
from contextlib import suppress
from deepcoder_trainer.__main__ import _COMMANDS, main
for name in ("run", *_COMMANDS):
    with suppress(SystemExit):
        main([name, "--help"])
print(sorted({"torch", "ray", "vllm", "transformers", "boto3"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == "[]"


def test_wrong_usage_exits_64() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepcoder_trainer", "run"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 64
    assert "--config" in done.stderr


def test_a_stage_config_as_the_operator_writes_it_is_read(tmp_path: Path) -> None:
    config = LocalRun.model_validate(LOCAL).stage_config(0, 3, None)
    path = tmp_path / "stage.json"
    path.write_bytes(config.to_json())
    assert load_config(path) == config


def test_a_local_run_expands_to_stage_configs() -> None:
    run = LocalRun.model_validate(LOCAL)
    first, second = run.stage_config(0, 1, None), run.stage_config(1, 2, None)
    assert isinstance(first, StageConfig)
    assert (first.stage.index, second.stage.index) == (0, 1)
    assert second.earlier_stages == ["short"]
    assert second.longest_context_tokens == 128
    assert second.ordinal == 2
    assert first.run == second.run


def test_where_a_run_is_stored_and_judged_and_by_how_many_done_does_not_change_its_digest_but_its_recipe_does() -> None:
    run = LocalRun.model_validate(LOCAL)
    moved = LocalRun.model_validate(changed(storage={"uri": "file:///elsewhere"}, judge={"workers": 7}))
    other = LocalRun.model_validate(changed(recipe={"promptsPerStep": 4, "seed": 1}))
    assert run.config_digest == moved.config_digest
    assert run.identity != moved.identity
    more = changed(stages=[{**stage, "resources": {"learners": 2, "samplers": 3}} for stage in LOCAL["stages"]])
    assert run.config_digest == LocalRun.model_validate(more).config_digest
    longer = changed(stages=[{**stage, "contextTokens": 999} for stage in LOCAL["stages"]])
    assert run.config_digest != LocalRun.model_validate(longer).config_digest
    assert run.config_digest != other.config_digest


@pytest.mark.parametrize(
    ("value", "otherwise", "held"),
    [
        (0.6, Otherwise.HOLD, None),
        (0.4, Otherwise.HOLD, Otherwise.HOLD),
        (0.4, Otherwise.FAIL, Otherwise.FAIL),
        (0.4, Otherwise.PROMOTE, None),
    ],
)
def test_a_gate_holds_a_local_run_as_it_holds_one_in_a_cluster(
    value: float, otherwise: Otherwise, held: Otherwise | None
) -> None:
    gate = {"all": [{"metric": "reward_mean", "op": "Ge", "value": 0.5}], "otherwise": otherwise.value}
    stage = StageSettings.model_validate({**LOCAL["stages"][0], "index": 0, "promoteWhen": gate})
    assert held_by_gate(stage, {"reward_mean": value}) == held


def test_an_engine_on_cpus_takes_whole_prefills_and_memory_for_what_runs_at_once() -> None:
    config = LocalRun.model_validate(changed(recipe={"precision": "Float32", "maxPromptTokens": 100})).stage_config(
        0, 1, None
    )
    model = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128, "num_hidden_layers": 4}
    settings = engine_settings(config, model)
    assert settings.max_model_len == 116
    assert settings.max_num_batched_tokens >= settings.max_model_len
    assert settings.kv_cache_bytes is not None
    per_token = kv_bytes_per_token(model, "float32")
    assert per_token == 2 * 4 * 2 * 32 * 4
    assert settings.kv_cache_bytes >= settings.max_num_seqs * settings.max_model_len * per_token


def test_an_engine_has_room_for_an_evaluation_that_a_stage_configs_longest_context_forgets() -> None:
    config = LocalRun.model_validate(changed(recipe={"maxPromptTokens": 100})).stage_config(1, 1, None)
    forgets = config.model_copy(update={"longest_context_tokens": 64})
    model = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128, "num_hidden_layers": 4}
    assert engine_settings(forgets, model).max_model_len == 100 + 128, "vLLM would cut its responses off at 64"


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        ({"tokensPerDevice": 31}, "recipe.tokensPerDevice"),
    ],
)
def test_what_is_not_supported_is_refused_before_a_folder_is_claimed(
    tmp_path: Path, recipe: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadConfig) as caught:
        load_config(write(tmp_path, changed(recipe=recipe)))
    assert caught.value.field == field


def test_the_shipped_example_of_a_run_by_hand_is_read_as_one() -> None:
    example = Path(__file__).resolve().parents[2] / "examples/local-demo.yaml"
    run = load_config(example)
    assert isinstance(run, LocalRun)
    assert [stage.name for stage in run.stages] == ["short", "long", "eval"]
