"""The export that a stage ends with is held to its checkpoint, or its card says why not; a ruined one is no export."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import export_world
import pytest
from checkpoint_saving import EXPORT, card_of, save, state, trained
from in_process_learner import InProcessLearner

from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint.errors import ExportRuined, StorageUnavailable
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.running import export_check
from deepcoder_trainer.running.export_check import Comparison
from deepcoder_trainer.stopping import Stop

MakeConfig = Callable[..., StageConfig]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a whole tokenizer, whose head is its own."""
    return export_world.make_model(tmp_path_factory.mktemp("stage") / "base", "Qwen3")


async def test_the_difference_to_its_checkpoint_is_in_the_card_and_the_manifest(
    base: Path,
    stored_config: StageConfig,
    make_recipe: Callable,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
) -> None:
    from deepcoder_trainer.export.run import Order, export

    recipe = make_recipe(precision="BFloat16")
    config = stored_config.model_copy(
        update={"recipe": recipe, "model": stored_config.model.model_copy(update={"uri": str(base)})}
    )
    writer, _ = await trained(config, make_learner(recipe, base), make_batch, tmp_path / "w")
    made = await writer.export({"reward_mean": 0.5})
    card = card_of(config)
    figures = made.manifest.metrics
    assert 0 < figures["export/logits_max_abs"] < 0.5, "bfloat16 rounds what was trained in float32"
    assert 0 < figures["export/logits_mean_kl"] < 1e-3
    assert figures["export/positions"] > 400
    assert figures["reward_mean"] == 0.5
    for said in (
        "logits_compared: true",
        f"| Largest difference of a logit | {figures['export/logits_max_abs']:.3g} |",
        f"| Mean KL(source ‖ export), nats | {figures['export/logits_mean_kl']:.3g} |",
        f"| Same likeliest token | {100 * figures['export/top1_agreement']:.2f} % |",
    ):
        assert said in card
    assert "Not compared" not in card
    endpoint = config.storage.endpoint
    assert not any(link.problems for link in walk_chain(made.ref.uri, deep=True, endpoint=endpoint))
    by_hand = export(
        Order(
            f"{config.storage.uri}/short/step-000001.a001",
            f"file://{tmp_path}/by-hand",
            endpoint=endpoint,
            sources=Sources(cache=tmp_path / "cache", endpoint=endpoint),
        ),
        lambda _: None,
    )
    assert by_hand.difference.figures() == pytest.approx(
        {name: value for name, value in figures.items() if name.startswith("export/")}, rel=1e-3
    ), "the command's figures are these"
    assert not list(tmp_path.glob("w/**/*.safetensors")), "nothing of it lies on the machine"


def spoil(folder: Path, how: str) -> None:
    """What is about to be uploaded is another model than the learner's."""
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    weights = export_world.load(path)
    name = "model.layers.1.mlp.down_proj.weight"
    if how == "altered":
        weights[name] = weights[name] * -1
    elif how == "not finite":
        weights[name][0, 0] = float("nan")
    elif how == "lacking":
        del weights[name]
    elif how == "other shape":
        weights[name] = weights[name][:, 1:].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    if how == "no tensors":
        path.write_bytes(b"\xff" * 64)
    if how in CONFIGURATIONS:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | CONFIGURATIONS[how]))
    elif how == "no configuration":
        (folder / "config.json").write_text("{")


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "other configuration": {"rms_norm_eps": 100.0},
    "one layer more": {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
    "other width": {"intermediate_size": 8},
    "head of the embedding": {"tie_word_embeddings": True},
    "unknown architecture": {"model_type": "none-such"},
}
SAID = {
    "altered": "mean KL",
    "other configuration": "mean KL",
    "one layer more": "config.json asks for other weights",
    "other width": "config.json asks for other weights",
    "head of the embedding": "config.json asks for other weights than are there: 1 of its weights .*lm_head.weight",
    "unknown architecture": "the export cannot be loaded",
    "no configuration": "the export cannot be loaded",
    "gone": "the export cannot be loaded: .*model.safetensors does not exist",
    "not finite": "logits are not finite",
    "lacking": "1 of its weights are missing",
    "other shape": "1 of its weights are missing, left over or of another shape",
    "no tensors": "the export cannot be loaded",
}


@pytest.mark.parametrize("how", SAID)
async def test_a_ruined_export_fails_the_attempt_and_the_next_one_exports_anew_and_removes_what_was_left(
    how: str, base: Path, make_config: MakeConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config = make_config(model={"uri": str(base)})
    learner = make_learner(model=base)
    writer, _ = await trained(config, learner, make_batch, tmp_path / "w")
    checkpoint = writer.latest
    save_pretrained, upload = learner.save_pretrained, learner.upload

    async def ruined(directory: str) -> None:
        await save_pretrained(directory)
        spoil(Path(directory), how)

    async def lost(*where: Any) -> Any:
        files = await upload(*where)
        (tmp_path / "store" / EXPORT / "model.safetensors").unlink()
        return files

    learner.save_pretrained = ruined
    if how == "gone":
        learner.upload = lost
    with pytest.raises(ExportRuined, match=f"{EXPORT} is not published: .*{SAID[how]}.*step-000001.a001 is kept"):
        await writer.export({})
    left = tmp_path / "store" / EXPORT
    assert (left / "config.json").exists()
    assert not (left / MANIFEST).exists()
    assert not (left / "README.md").exists()
    learner.save_pretrained, learner.upload = save_pretrained, upload
    next_config = make_config(ordinal=2, model={"uri": str(base)})
    following = CheckpointWriter(next_config, learner, workdir=tmp_path / "w2", parent=checkpoint.ref)
    following.compare = Comparison(next_config, Stop(), learner).compare
    await following.claim()
    following.latest = checkpoint
    assert (await following.export({})).manifest.metrics["export/logits_max_abs"] == 0
    assert not left.exists()
    assert not any(link.problems for link in walk_chain(checkpoint.ref.uri, deep=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, None),
        (lambda index: index["weight_map"].popitem(), "1 of its weights are not where its index says"),
        (lambda index: index["weight_map"].update({"lm_head.weight": "other"}), "1 of its weights are not where"),
        (lambda index: index.pop("weight_map"), "the export cannot be loaded: .*index.json"),
    ],
    ids=["whole", "lacks a weight", "another file", "names none"],
)
async def test_an_export_in_several_files_is_held_to_the_index_that_loaders_go_by(
    change: Callable[[Any], Any] | None,
    said: str | None,
    base: Path,
    make_config: MakeConfig,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deepcoder_trainer.learner import files
    from deepcoder_trainer.learner.pretrained import write_pretrained

    monkeypatch.setattr(files, "write_pretrained", partial(write_pretrained, shard_bytes=1 << 20))
    learner = make_learner(model=base)
    writer, _ = await trained(make_config(model={"uri": str(base)}), learner, make_batch, tmp_path / "w")
    save_pretrained = learner.save_pretrained

    async def changed(directory: str) -> None:
        await save_pretrained(directory)
        path = Path(directory) / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        if change is not None:
            change(index)
        path.write_text(json.dumps(index))

    learner.save_pretrained = changed
    if said is None:
        made = await writer.export({})
        assert made.manifest.metrics["export/logits_max_abs"] == 0
        assert sum(entry.path.endswith(".safetensors") for entry in made.manifest.files) > 2
        return
    with pytest.raises(ExportRuined, match=said):
        await writer.export({})


@pytest.mark.parametrize("cause", ["deadline", "drain", "asked before", "storage", "checkpoint", "source not finite"])
async def test_what_cannot_be_compared_is_exported_and_says_why(
    cause: str,
    base: Path,
    make_config: MakeConfig,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_config(model={"uri": str(base)})
    learner, stop = make_learner(model=base), Stop()
    writer, comparison = await trained(config, learner, make_batch, tmp_path / "w", stop)

    async def for_ever(_work: Any) -> Any:
        if cause == "drain":
            stop.request(60, "SIGTERM")
        await asyncio.Event().wait()

    def dead(*_: Any) -> bytes:
        raise StorageUnavailable("the line is dead")

    if cause == "deadline":
        comparison.seconds = 0.2
        learner.beside = for_ever
    elif cause == "drain":
        learner.beside = for_ever
    elif cause == "asked before":
        stop.request(60, "SIGTERM")
    elif cause == "storage":
        monkeypatch.setattr(FileStore, "get_range", dead)
        monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.0)
    elif cause == "checkpoint":
        for path in (tmp_path / "store/short/step-000001.a001/learner").glob("*.safetensors"):
            path.unlink()
    else:
        await poison(learner)
        await save(writer, state(2), metrics={})
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger=export_check.__name__):
        made = await writer.export({"reward_mean": 0.5})
    assert time.monotonic() - began < 30, "of the 60 s that the stop gives, and of no end without one"
    reason = {
        "deadline": "it was not done within 0.2 s",
        "drain": "the attempt was asked to stop (SIGTERM)",
        "asked before": "the attempt was asked to stop (SIGTERM)",
        "storage": "StorageUnavailable: the line is dead",
        "checkpoint": "does not exist",
        "source not finite": "the source's own logits are not finite: export an earlier checkpoint",
    }[cause]
    folder = made.ref.uri.removeprefix(f"{config.storage.uri}/")
    card = card_of(config, folder)
    assert "logits_compared: false" in card
    [said] = [line for line in card.splitlines() if line.startswith("Not compared: `")]
    assert reason in said
    assert f"`deepcoder-trainer export --source {writer.latest.ref.uri} --output OUTPUT`" in said
    assert made.manifest.metrics == {"reward_mean": 0.5}
    assert not next(walk_chain(made.ref.uri, deep=True)).problems
    [warned] = [r.getMessage() for r in caplog.records if r.name == export_check.__name__]
    assert reason in warned
    assert folder in warned


@pytest.mark.parametrize(("stall_seconds", "seconds"), [(1800, 900), (60, 30), (7200, 900)])
def test_the_comparison_ends_before_the_attempt_counts_as_stalled(
    stall_seconds: int, seconds: float, make_config: MakeConfig
) -> None:
    config = make_config()
    config = config.model_copy(update={"stage": config.stage.model_copy(update={"stall_seconds": stall_seconds})})
    assert Comparison(config, Stop(), None).seconds == seconds  # type: ignore[arg-type]


async def poison(learner: InProcessLearner) -> None:
    """Its weights are no numbers any more, as after training that went astray."""
    import torch

    for _name, parameter in learner.rank.policy.named_parameters():
        with torch.no_grad():
            parameter.fill_(float("nan"))


async def test_files_of_an_export_that_was_cut_off_before_its_card_are_no_export(
    base: Path, make_config: MakeConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config = make_config(model={"uri": str(base)})
    learner = make_learner(model=base)
    writer, comparison = await trained(config, learner, make_batch, tmp_path / "w")

    async def killed(*_: Any) -> Any:
        raise asyncio.CancelledError

    writer.compare = killed
    with pytest.raises(asyncio.CancelledError):
        await writer.export({})
    left = tmp_path / "store" / EXPORT
    assert (left / "model.safetensors").exists()
    assert not (left / "README.md").exists()
    assert not (left / MANIFEST).exists()
    again = CheckpointWriter(config, learner, workdir=tmp_path / "again")
    again.latest = writer.latest
    again.compare = comparison.compare
    made = await again.export({})
    assert "logits_compared: true" in card_of(config)
    assert "README.md" in {entry.path for entry in made.manifest.files}

    async def never(*_: Any) -> Any:
        raise AssertionError("what is there is taken as it is")

    again.compare = never
    assert (await again.export({})).ref == made.ref
