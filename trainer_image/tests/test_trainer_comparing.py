"""What follows from comparing a stage's export: rounding costs no run its export, and of a refused one all is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_world
import pytest
from checkpoint_saving import EXPORT, card_of, run_to, save, state, trained

from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.committed import CommittedCheckpoint
from deepcoder_trainer.checkpoint.errors import ExportRuined, StorageUnavailable
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.export import stage
from deepcoder_trainer.export.errors import FarOff, SourceBroken
from deepcoder_trainer.modelcard import CARD, Difference, NotCompared
from deepcoder_trainer.running import export_check
from deepcoder_trainer.stopping import Stop, StopReached

MakeConfig = Callable[..., StageConfig]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a whole tokenizer, whose head is its own."""
    return export_world.make_model(tmp_path_factory.mktemp("comparing") / "base", "Qwen3")


@pytest.mark.parametrize(
    "negated",
    [
        None,
        ("model.layers.1.mlp.down_proj.weight", slice(None)),
        ("lm_head.weight", slice(export_world.UNLIKELY, export_world.UNLIKELY + 1)),
    ],
    ids=["rounded", "another layer", "another row of the head"],
)
async def test_what_bfloat16_holds_badly_is_exported_with_a_word_and_another_model_is_not(
    negated: tuple[str, slice] | None,
    base: Path,
    make_config: MakeConfig,
    make_recipe: Callable,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = make_recipe(precision="BFloat16")
    config = make_config(recipe=recipe, model={"uri": str(base)})
    learner = make_learner(recipe, base)
    writer, _ = await trained(config, learner, make_batch, tmp_path / "w")
    export_world.scale_head(learner.rank.policy)
    await save(writer, state(2), metrics={})
    if negated is not None:
        save_pretrained = learner.save_pretrained

        async def ruined(directory: str) -> None:
            await save_pretrained(directory)
            export_world.negate(Path(directory), *negated)

        learner.save_pretrained = ruined
        with pytest.raises(ExportRuined, match="mean KL"):
            await writer.export({})
        return
    made = await writer.export({})
    assert made.manifest.metrics["export/logits_mean_kl"] > 1e-2, "more than an export may be off by"
    assert made.manifest.metrics["export/rounding"] == 1
    card = card_of(config, "short/export/step-000002.a001")
    assert "logits_compared: true" in card
    assert "all of it comes from rounding: the checkpoint's weights in bfloat16 compute the same as the export" in card
    assert "all of it comes from rounding to BFloat16" in caplog.text


@pytest.mark.parametrize("cause", ["deadline", "storage", "source not finite", "stop"])
async def test_what_is_far_off_is_not_published_where_nobody_could_tell_whether_that_is_rounding(
    cause: str, make_config: MakeConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config, learner, stop = make_config(), make_learner(), Stop()
    writer, comparison = await trained(config, learner, make_batch, tmp_path / "w", stop)
    looks = []

    async def beside(work: Any) -> Any:
        looks.append(work.func)
        if len(looks) == 1:
            raise FarOff("mean KL 0.5 nats", Difference(max_abs=9.0, mean_kl=0.5, top1=0.5, positions=1))
        if cause == "storage":
            raise StorageUnavailable("the line is dead")
        if cause == "source not finite":
            raise SourceBroken("the source's own logits are not finite")
        if cause == "stop":
            stop.request(60, "SIGTERM")
        await asyncio.Event().wait()

    learner.beside = beside
    if cause == "deadline":
        comparison.seconds = 0.2
    said = {
        "deadline": r"mean KL 0.5 nats; .*not be determined .* \(it was not done within 0.2 s\); .*a001 is kept",
        "storage": r"mean KL 0.5 nats; .*not be determined .* rounding \(StorageUnavailable: the line is dead\)",
        "source not finite": "mean KL 0.5 nats; .*not be determined .* rounding .SourceBroken: the source's own logits",
        "stop": "SIGTERM",
    }[cause]
    with pytest.raises(StopReached if cause == "stop" else ExportRuined, match=said):
        await writer.export({})
    assert looks == [stage.stored_difference, stage.stored_rounding]
    assert not (tmp_path / "store" / EXPORT / MANIFEST).exists()
    assert not (tmp_path / "store" / EXPORT / "README.md").exists()


async def test_an_export_within_the_bound_says_nothing_of_rounding(
    base: Path, make_config: MakeConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config = make_config(model={"uri": str(base)})
    learner = make_learner(model=base)
    writer, _ = await trained(config, learner, make_batch, tmp_path / "w")
    made = await writer.export({})
    assert made.manifest.metrics["export/rounding"] == 0
    assert "rounding" not in card_of(config)


async def test_the_log_says_when_a_comparison_begins_how_far_it_is_and_what_it_took(
    base: Path,
    make_config: MakeConfig,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(stage, "PROGRESS_SECONDS", 0.0)
    config = make_config(model={"uri": str(base)})
    learner = make_learner(model=base)
    writer, _ = await trained(config, learner, make_batch, tmp_path / "w")
    with caplog.at_level(logging.INFO):
        await writer.export({})
    said = [r.getMessage() for r in caplog.records if r.name in (export_check.__name__, stage.__name__)]
    store = config.storage.uri
    assert said[0].startswith(f"comparing {store}/{EXPORT} (0.00")
    assert said[0].endswith(f" GB) with {store}/short/step-000001.a001, 900 s at most")
    layers = [f"logits of {whose}: {n} of 2 layers" for whose in ("the checkpoint", "the export") for n in (1, 2)]
    assert said[1:5] == layers
    assert said[5].startswith("the comparison took ")
    assert "logits differ from the checkpoint's by at most 0" in said[6]
    assert len(said) == 7


async def test_a_refused_export_is_left_without_card_and_manifest(
    make_config: MakeConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=1)

    async def refuses(*_: Any) -> Any:
        raise ExportRuined("another model")

    writer.compare = refuses
    with pytest.raises(ExportRuined, match="another model"):
        await writer.export({})
    left = {path.name for path in (tmp_path / "store" / EXPORT).iterdir()}
    assert "model.safetensors" in left
    assert not left & {MANIFEST, CARD}


@pytest.mark.parametrize("commits", ["before", "after"])
async def test_an_attempt_that_refuses_its_export_takes_nothing_from_a_twin_that_commits_the_same_files(
    commits: str, make_config: MakeConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    """A queue may have started the attempt twice: both have one folder, and one model in it."""
    config, learner = make_config(), make_learner()
    writer = await run_to(config, learner, make_batch, tmp_path / "w", last=1)
    twin = CheckpointWriter(config, learner, workdir=tmp_path / "twin")
    twin.latest = writer.latest
    there, refused = asyncio.Event(), asyncio.Event()
    exporting: list[asyncio.Task[CommittedCheckpoint]] = []

    async def refuses_meanwhile(*_: Any) -> Any:
        exporting.append(asyncio.create_task(twin.export({})))
        await (exporting[0] if commits == "before" else there.wait())
        raise ExportRuined("another model")

    async def finds_it_whole(*_: Any) -> NotCompared:
        there.set()
        if commits == "after":
            await refused.wait()
        return NotCompared("no time")

    writer.compare, twin.compare = refuses_meanwhile, finds_it_whole
    with pytest.raises(ExportRuined):
        await writer.export({})
    refused.set()
    made = await exporting[0]
    assert not any(link.problems for link in walk_chain(made.ref.uri, deep=True))
