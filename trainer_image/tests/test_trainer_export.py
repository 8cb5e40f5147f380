"""Exports in Hugging Face layout: of whom, with which card and chain, and never by half or of a doubtful source."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export_world
import pytest
from checkpoint_saving import flip, run_to, save, state

from deepcoder_contracts.manifest import Manifest, ParentRef
from deepcoder_contracts.recipe import Precision
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.__main__ import main
from deepcoder_trainer.checkpoint.inputs import Inputs
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.export import prompts
from deepcoder_trainer.export.card import model_card
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.export.source import agreed, evaluations, find
from deepcoder_trainer.modelcard import Difference
from deepcoder_trainer.modelconfig import model_files


def quiet(_text: str) -> None:
    pass


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An export of a run below tmp_path/run."""
    return export_world.commit(export_world.make_model(tmp_path / "model"), tmp_path / "run")


def test_an_export_is_asked_in_the_tokens_that_training_used_whatever_class_the_tokenizer_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSeek-R1-Distill-Llama names Llama's class, which would ignore how its tokenizer.json splits text."""
    from deepcoder_trainer.export.run import Order, export
    from deepcoder_trainer.tokenizer import load_tokenizer

    model = export_world.make_model(tmp_path / "model", "Llama")
    named = model / "tokenizer_config.json"
    named.write_text(json.dumps(json.loads(named.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    trained = prompts.tokens(load_tokenizer(model))

    class Asked(Exception):
        pass

    def asked(tokenizer: Any) -> list[list[int]]:
        raise Asked(*prompts_of(tokenizer))

    prompts_of = prompts.tokens
    monkeypatch.setattr(prompts, "tokens", asked)
    source = export_world.commit(model, tmp_path / "run")
    with pytest.raises(Asked) as found:
        export(Order(f"file://{source}", f"file://{tmp_path / 'out'}"), quiet)
    assert list(found.value.args) == trained


def test_an_export_is_the_same_model_in_shards_with_a_card_and_a_chain(exported: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_world.evaluate(exported, {"eval/lcb/pass_at_1": 0.375})
    target = tmp_path / "out"
    assert main(["export", "--source", str(exported), "--output", str(target), "--shard-bytes", "200000"]) == 0
    names = sorted(path.name for path in target.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"} < set(names)
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    before = AutoModelForCausalLM.from_pretrained(exported)
    after = AutoModelForCausalLM.from_pretrained(target)
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    messages = [{"role": "user", "content": "print 1"}]
    chat = AutoTokenizer.from_pretrained(target).apply_chat_template(messages, tokenize=False)
    assert chat == "<|im_start|>user\nprint 1<|im_end|>\n"
    links = list(walk_chain(f"file://{target}", deep=True))
    assert [link.manifest.kind.value for link in links if link.manifest] == ["Export", "Export", "Checkpoint"]
    assert not any(link.problems for link in links)
    card = (target / "README.md").read_text()
    for said in (
        'base_model: "org/base"',
        "| Base model | `hf://org/base@main` |",
        f"| Lineage digest | `{links[1].digest}` |",
        f"| Dataset digest | `sha256:{'d' * 64}` |",
        f"| Recipe digest | `sha256:{'c' * 64}` |",
        "step 2 of the stage, 5 in all",
        f"which names no parent, is long step 2 of run `team/coder {export_world.RUN.uid}`",
        "| `reward_mean` | 0.625 |",
        "| `eval/held/pass_at_1` | 0.5 |",
        "| `eval/lcb/pass_at_1` | 0.375 |",
        "| Same likeliest token | 100.00 % |",
    ):
        assert said in card
    figures = Manifest.from_json((target / "MANIFEST.json").read_bytes()).metrics
    assert figures["export/logits_max_abs"] == 0
    assert figures["eval/lcb/pass_at_1"] == 0.375
    assert figures["export/positions"] > 400


def test_a_card_tells_evaluations_of_one_set_apart_and_the_manifest_says_what_they_agree_on(exported: Path) -> None:
    short = export_world.evaluate(exported, {"eval/lcb/pass_at_1": 0.25}, "a" * 64, context_tokens=16384)
    figures = {"eval/lcb/pass_at_1": 0.5, "eval/aime/pass_at_1": 0.75}
    export_world.evaluate(exported, figures, "b" * 64, context_tokens=65536, samples=16)
    edited = export_world.evaluate(exported, {"eval/lcb/pass_at_1": 0.99}, "c" * 64)
    (edited / "results.json").write_text("{}")
    of_another = export_world.evaluate(exported, {"eval/aime/pass_at_1": 0.98}, "d" * 64) / "MANIFEST.json"
    elsewhere = ParentRef(uri=f"file://{exported}", digest=f"sha256:{'0' * 64}")
    of_another.write_bytes(
        Manifest.from_json(of_another.read_bytes()).model_copy(update={"parent": elsewhere}).to_json()
    )
    place = find(f"file://{exported}", None, None)
    measured = evaluations(place, None, None)
    assert agreed(measured) == {"eval/aime/pass_at_1": 0.75}, "of two figures of one name neither is the figure"
    same = Difference(max_abs=0.0, mean_kl=0.0, top1=1.0, positions=1)
    card = model_card("m", place, Format.HUGGINGFACE, "bfloat16", same, measured, {})
    assert f"| `eval/lcb/pass_at_1` | 0.25 | `{short.name[:12]}` | 16384 | 1 |" in card
    assert f"| `eval/lcb/pass_at_1` | 0.5 | `{'b' * 12}` | 65536 | 16 |" in card
    assert "| `eval/held/pass_at_1` | 0.5 | from the source's manifest |" in card
    assert "0.99" not in card, "what was changed since was not measured"
    assert "0.98" not in card, "another export of the run was"
    said = "The figures are the source's. This export computes differently"
    assert said not in card
    assert said in model_card("m", place, Format.GGUF_Q4_K_M, "bfloat16", same, measured, {})
    scaled = {
        "rope_parameters": {"factor": 4.0, "original_max_position_embeddings": 32},
        "max_position_embeddings": 128,
    }
    assert said in model_card("m", place, Format.HUGGINGFACE, "bfloat16", same, measured, scaled)


async def test_a_checkpoint_between_exports_is_exported_with_its_trained_weights(
    make_config: Callable[..., StageConfig],
    make_learner: Callable,
    make_recipe: Callable,
    make_batch: Callable,
    tmp_path: Path,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from deepcoder_trainer.export.run import Order, export

    base = export_world.make_model(tmp_path / "base")
    config = make_config(model={"uri": str(base)})
    learner = make_learner(model=base)
    await run_to(config, learner, make_batch, tmp_path / "w", last=2)
    source = f"{tmp_path}/store/short/step-000002.a001"
    order = Order(f"file://{source}/MANIFEST.json", f"file://{tmp_path}/out")
    done = export(order, quiet)
    assert find(f"file://{tmp_path}/store", None, None).ref == done.place.ref, "of a run: the newest, without an export"
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    for name, value in learner.rank.weights():
        assert torch.equal(after.get_parameter(name), value.to(torch.bfloat16)), name
    assert 0 < done.difference.max_abs < 0.5, "bfloat16 rounds what was trained in float32"
    assert done.difference.mean_kl < 1e-3
    card = (tmp_path / "out" / "README.md").read_text()
    digest = hashlib.sha256((base / "tokenizer.json").read_bytes()).hexdigest()
    assert f"| `tokenizer.json` | `sha256:{digest}` |" in card
    assert "no manifest says what they were in training" in card
    exact = export(Order(order.source, f"file://{tmp_path}/exact", precision=Precision.FLOAT32), quiet)
    assert exact.difference.max_abs == 0


async def test_a_checkpoint_is_exported_with_the_configuration_and_tokenizer_that_it_was_trained_with(
    make_config: Callable[..., StageConfig],
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = export_world.make_model(tmp_path / "base")
    read = model_files(base)
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= read.keys()
    config = make_config(model={"uri": str(base)})
    await run_to(config, make_learner(model=base), make_batch, tmp_path / "w", last=1, inputs=Inputs(model_files=read))
    source, target = f"{tmp_path}/store/short/step-000001.a001", tmp_path / "results" / "out"
    arguments = ["export", "--source", source, "--output", str(target)]
    trained_with = (base / "generation_config.json").read_bytes()
    (base / "generation_config.json").write_text('{"temperature": 2.0}')
    (base / "chat_template.json").write_text("{}")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"{base} has another chat_template.json, generation_config.json than when the checkpoint was made" in said
    assert not list(target.parent.glob("*"))
    (base / "generation_config.json").write_bytes(trained_with)
    (base / "chat_template.json").unlink()
    assert main(arguments) == 0
    assert "as training read them: the checkpoint's manifest has their digests" in (target / "README.md").read_text()


@pytest.mark.parametrize("damage", ["ancestor", "cut", "own", "missing", "unlisted"])
def test_a_source_whose_chain_does_not_hold_is_not_exported(
    damage: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "ancestor":
        parent = exported.parent.parent / exported.name / "MANIFEST.json"
        parent.write_bytes(parent.read_bytes().replace(b'"seed":7', b'"seed":8'))
    elif damage == "cut":
        document = Manifest.from_json((exported / "MANIFEST.json").read_bytes())
        (exported / "MANIFEST.json").write_bytes(document.model_copy(update={"parent": None}).to_json())
    elif damage == "own":
        flip(exported / "model.safetensors")
    elif damage == "missing":
        (exported / "tokenizer.json").unlink()
    else:
        shutil.copy(exported / "model.safetensors", exported / "zz.safetensors")
    target = tmp_path / "results" / "out"
    assert main(["export", "--source", str(exported), "--output", str(target)]) == 1
    said = {"ancestor": "as its child says", "own": "has sha256", "missing": "tokenizer.json is missing"}
    said["unlisted"] = "zz.safetensors is not in its manifest: remove it"
    said["cut"] = "it is an export and does not name the checkpoint that it was made from: its chain is cut"
    assert said[damage] in capsys.readouterr().err
    assert not list(target.parent.glob("*")), "nothing is left behind"


def test_a_ruined_conversion_is_refused_unless_it_is_wanted(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def ruined(tensors: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        for name in tensors.names():
            value = tensors.get(name).to(dtype)
            yield name, value.flip(0) if name.endswith("q_proj.weight") else value

    monkeypatch.setattr("deepcoder_trainer.export.run.in_dtype", ruined)
    target = tmp_path / "results" / "out"
    arguments = ["export", "--source", str(exported), "--output", str(target)]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "the export is not the model that it was made from: mean KL" in said
    assert "--any-difference" in said
    assert not list(target.parent.glob("*"))
    assert main([*arguments, "--any-difference"]) == 0
    assert Manifest.from_json((target / "MANIFEST.json").read_bytes()).metrics["export/logits_mean_kl"] > 1e-2


@pytest.mark.parametrize("negated", [None, "model.layers.1.mlp.down_proj.weight"], ids=["rounded", "another layer"])
async def test_what_bfloat16_holds_badly_is_exported_by_the_command_too_and_another_model_is_not(
    negated: str | None,
    make_config: Callable[..., StageConfig],
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from deepcoder_trainer.export import huggingface

    base = export_world.make_model(tmp_path / "base", "Qwen3")
    config = make_config(model={"uri": str(base)})
    learner = make_learner(model=base)
    writer = await run_to(config, learner, make_batch, tmp_path / "w", last=1)
    export_world.scale_head(learner.rank.policy)
    await save(writer, state(2), metrics={})
    await writer.wait()
    write = huggingface.write
    if negated is not None:

        def ruined(weights: Any, pretrained: Path, directory: Path, *more: Any) -> None:
            write(weights, pretrained, directory, *more)
            export_world.negate(directory, negated, slice(None))

        monkeypatch.setattr(huggingface, "write", ruined)
    target = tmp_path / "results" / "out"
    source = f"{tmp_path}/store/short/step-000002.a001"
    code = main(["export", "--source", source, "--output", str(target)])
    said = capsys.readouterr()
    assert "checking whether it comes from rounding" in said.err
    if negated is not None:
        assert code == 1
        assert "the export is not the model that it was made from: mean KL" in said.err
        assert not list(target.parent.glob("*"))
        return
    note = "all of it comes from rounding: the source's weights in bfloat16 compute the same as the export"
    assert code == 0
    assert note in said.out
    assert note in (target / "README.md").read_text()
    figures = Manifest.from_json((target / "MANIFEST.json").read_bytes()).metrics
    assert figures["export/logits_mean_kl"] > 1e-2, "more than an export may be off by"
    assert figures["export/rounding"] == 1


def test_positions_reach_further_by_yarn_in_every_spelling(exported: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    from deepcoder_trainer.export.run import Order, export

    done = export(Order(f"file://{exported}", f"file://{tmp_path}/out", rope=512), quiet)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.max_position_embeddings == 512
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["factor"] == 4
    assert config.rope_parameters["rope_theta"] == 10000
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_scaling"] == {
        "rope_type": "yarn",
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    assert written["rope_theta"] == 10000
    assert done.difference.max_abs > 0.01, "scaled positions change short prompts, and the card says so"
    assert "scaled by YaRN, by 4 from 128, and reach 512 tokens" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rope", "128"], "--rope 128 is no more than the 128 positions that the model has"),
        (["--rope", "100000"], "more than 64 times 128 positions"),
        (["--rope-original", "64"], "give --rope, too"),
        (["--shard-bytes", "0"], "give a number above 0"),
        (["--name", "org/model"], "--name org/model: it becomes a file's name: give letters, digits"),
        (["--name", "../x"], "and no folder"),
        (["--source", "SOURCE/nothing"], "holds neither MANIFEST.json nor RUN.json"),
        (["--source", "ftp://x/y"], "is neither s3://bucket/prefix, file:///path nor a path"),
        (["--output", "SOURCE"], "exists: choose another place"),
    ],
)
def test_what_cannot_be_exported_is_said_by_option(
    options: list[str], message: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.replace("SOURCE", str(exported)) for option in options]
    arguments = ["--source", str(exported), "--output", str(tmp_path / "out"), *given]
    assert main(["export", *arguments]) == 64
    assert message in capsys.readouterr().err
