"""Models that a stage leaves for others, in Hugging Face layout, with a chain back to their checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_saving import flip, run_to, save, state, store_of
from export_world import manifest

from deepcoder_contracts.manifest import ManifestKind, ParentRef
from deepcoder_contracts.rope import RopeScaling, RopeType
from deepcoder_contracts.stage import ModelSource, StageConfig
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, StorageDenied
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.evaluation.targets import newest_export
from deepcoder_trainer.modelcard import NotCompared, stage_card


async def test_an_export_is_served_by_transformers_and_its_chain_leads_to_the_checkpoint(
    stored_config: StageConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    learner = make_learner()
    writer = await run_to(stored_config, learner, make_batch, tmp_path / "w", last=2)
    export = await writer.export({"eval/x/pass_at_1": 0.5})
    assert (await writer.export({})).ref == export.ref, "a second export finds the first"
    assert export.manifest.parent == writer.latest.ref
    assert export.ref.uri.endswith("short/export/step-000002.a001")
    endpoint = stored_config.storage.endpoint
    links = list(walk_chain(export.ref.uri, deep=True, endpoint=endpoint))
    assert [link.manifest.kind.value for link in links if link.manifest] == ["Export", "Checkpoint", "Checkpoint"]
    assert not any(link.problems for link in links)
    sources = Sources(cache=tmp_path / "cache", endpoint=endpoint)
    directory = sources.model(ModelSource(uri=export.ref.uri))
    assert sources.model(ModelSource(uri=export.ref.uri)) == directory
    model = AutoModelForCausalLM.from_pretrained(directory)
    for name, value in learner.rank.weights():
        assert torch.equal(model.get_parameter(name), value)


async def test_a_presumed_dead_attempt_that_reaches_its_end_does_not_keep_the_next_from_exporting(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    old, new = make_config(), make_config(ordinal=2)
    store = store_of(new)
    zombie = await run_to(old, make_learner(), make_batch, tmp_path / "1", last=1)
    successor = CheckpointWriter(new, make_learner(), workdir=tmp_path / "2", parent=zombie.parent)
    await successor.claim()
    await save(zombie, state(2), metrics={}, final=True)
    late = await zombie.export({})
    assert newest_export("short", store) is None, "it was committed after a later attempt had begun"
    await save(successor, state(2), metrics={}, final=True)
    export = await successor.export({})
    assert export.ref != late.ref
    assert newest_export("short", store) == "short/export/step-000002.a002"
    third = CheckpointWriter(make_config(ordinal=3), make_learner(), workdir=tmp_path / "3")
    await third.claim()
    third.latest = successor.latest
    assert (await third.export({})).ref == export.ref, "an export of the same checkpoint is taken as it is"


@pytest.mark.parametrize("removes", [True, False])
async def test_an_attempt_that_only_exports_removes_what_the_one_before_left_of_its_own_if_it_can(
    removes: bool,
    make_config: Callable,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It saves nothing, after which unfinished uploads go elsewhere."""
    learner, folder = make_learner(), tmp_path / "store/short"
    killed = await run_to(make_config(), learner, make_batch, tmp_path / "1", last=1)
    await save(killed, state(2), metrics={}, final=True)

    async def cut_off(*_: object) -> NotCompared:
        raise asyncio.CancelledError

    killed.compare = cut_off
    with pytest.raises(asyncio.CancelledError):
        await killed.export({})
    assert list((folder / "export/step-000002.a001").glob("*.safetensors"))
    following = CheckpointWriter(make_config(ordinal=2), learner, workdir=tmp_path / "2")
    await following.claim()
    following.latest = killed.latest

    def denied(*_: object, **__: object) -> int:
        raise StorageDenied("objects may not be deleted")

    if not removes:
        monkeypatch.setattr(FileStore, "delete_prefix", denied)
    made = await following.export({})
    left = set() if removes else {"step-000002.a001"}
    assert {path.name for path in (folder / "export").iterdir()} == {"step-000002.a002"} | left
    assert not any(link.problems for link in walk_chain(made.ref.uri, deep=True))


async def test_a_stage_s_own_export_has_a_card_that_says_where_it_comes_from_and_what_nobody_has_looked_at(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config = make_config(model={"uri": "hf://org/base", "revision": "main"})
    writer = await run_to(config, make_learner(), make_batch, tmp_path / "w", last=1)
    checkpoint = writer.latest
    assert checkpoint is not None
    export = await writer.export({"reward_mean": 0.25, "eval/held/pass_at_1": 0.5})
    card = (Path(export.ref.uri.removeprefix("file://")) / "README.md").read_text()
    for said in (
        'base_model: "org/base"',
        "logits_compared: false",
        "| Base model | `hf://org/base@main` |",
        f"| Source | `{checkpoint.ref.uri} (Checkpoint)` |",
        f"| Lineage digest | `{checkpoint.ref.digest}` |",
        "| `reward_mean` | 0.25 |",
        "| `eval/held/pass_at_1` | 0.5 |",
        "Not compared: `the export was made without a comparison`.",
        "but their logits were not compared with the checkpoint's",
        f"`deepcoder-trainer verify --deep {export.ref.uri}`",
        f"`deepcoder-trainer export --source {checkpoint.ref.uri} --output OUTPUT` makes an export",
    ):
        assert said in card
    assert "## Positions" not in card
    assert "README.md" in {entry.path for entry in export.manifest.files}
    assert not any(link.problems for link in walk_chain(export.ref.uri, deep=True))


def test_the_card_of_a_stage_with_scaled_positions_says_that_config_json_has_them_not() -> None:
    made = manifest(kind=ManifestKind.CHECKPOINT)
    ref = ParentRef(uri="s3://b/run/long/step-000002.a001", digest=made.config_digest)
    rope = RopeScaling(type=RopeType.YARN, factor=4)
    folder = "s3://b/run/long/export/step-000002.a001"
    card = stage_card(made, ref, folder, {}, "bfloat16", NotCompared("no time"), rope)
    assert "scaled by Yarn by a factor of 4; config.json has the model's original" in card


async def test_an_altered_export_is_not_evaluated(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=1)
    export = await writer.export({})
    flip(tmp_path / "store/short/export/step-000001.a001/model.safetensors")
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors has sha256"):
        Sources(cache=tmp_path / "cache").model(ModelSource(uri=export.ref.uri))
