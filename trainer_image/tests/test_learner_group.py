"""Learner ranks as real Ray actors: one and two ranks train alike, save and load across world sizes, and die loudly."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from deepcoder_contracts.manifest import Manifest, ManifestKind
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.errors import BadConfig, LearnerLost
from deepcoder_trainer.learner.group import (
    WAY,
    Deadlines,
    RayLearner,
    Way,
    plan_batch,
    start_learners,
    way_between_gpus,
)
from deepcoder_trainer.types import BroadcastWeights

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.early]


@pytest.fixture
def started() -> Iterator[list[RayLearner]]:
    """Learners that end with the test."""
    learners: list[RayLearner] = []
    yield learners
    for learner in learners:
        learner.kill()


@pytest.fixture
def start(tiny_model: Callable[..., Path], started: list[RayLearner]) -> Callable[..., Awaitable[RayLearner]]:
    async def make(config: StageConfig, **kwargs: Any) -> RayLearner:
        deadlines = Deadlines(start=240, train=240, transfer=240, state=240, close=60)
        started.append(await start_learners(config, tiny_model(), threads=1, deadlines=deadlines, **kwargs))
        return started[-1]

    return make


@dataclass
class Kept:
    """A learner that tests share, with the state in which it started: what takes time is that each rank loads torch."""

    learner: RayLearner
    storage: Storage
    manifest: Manifest


@pytest.fixture(scope="module")
def kept(ray_cluster: None) -> Iterator[dict[int, Kept]]:
    """By its number of ranks; whoever ends one takes it out, and the next who asks starts another."""
    made: dict[int, Kept] = {}
    yield made
    for each in made.values():
        each.learner.kill()


@pytest.fixture
def as_started(
    kept: dict[int, Kept],
    start: Callable[..., Awaitable[RayLearner]],
    started: list[RayLearner],
    make_config: Callable[..., StageConfig],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int], Awaitable[RayLearner]]:
    """Gives so many ranks as they were when they started."""
    first = "short/step-000000.a000"

    async def give(ranks: int) -> RayLearner:
        if ranks not in kept:
            folder = tmp_path_factory.mktemp("kept")
            config = make_config(learners=ranks, storage=Storage(uri=f"file://{folder}/store"))
            learner = await start(config)
            await learner.save(str(folder / "first"))
            files = await learner.upload(str(folder / "first"), config.storage, first)
            started.remove(learner)
            kept[ranks] = Kept(learner, config.storage, manifest_of(config, files, world_size=ranks))
            return learner
        learner, local = kept[ranks].learner, str(tmp_path / f"first-{ranks}")
        await learner.download(local, kept[ranks].storage, first, kept[ranks].manifest)
        await learner.load(local, optimizer=False)
        return learner

    return give


@pytest.fixture
async def one(as_started: Callable[[int], Awaitable[RayLearner]]) -> RayLearner:
    return await as_started(1)


@pytest.fixture
async def two(as_started: Callable[[int], Awaitable[RayLearner]]) -> RayLearner:
    return await as_started(2)


async def exported(learner: RayLearner) -> dict[str, np.ndarray]:
    refs = await learner.export_weights()
    return {name: array for ref in refs.chunks for name, array in (await ref).items()}


def manifest_of(config: StageConfig, files: list, world_size: int) -> Manifest:
    return Manifest(
        kind=ManifestKind.CHECKPOINT,
        run=config.run,
        stage="short",
        stage_index=0,
        ordinal=1,
        step=1,
        config_digest=config.provenance.config_digest,
        code_digest=config.provenance.config_digest,
        seed=0,
        world_size=world_size,
        created_at="2026-01-01T00:00:00Z",
        files=files,
    )


async def test_two_ranks_train_like_one_and_load_each_others_checkpoints(
    one: RayLearner, two: RayLearner, make_config: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config = make_config()
    metrics = [[await learner.train(make_batch(seed)) for seed in range(2)] for learner in (one, two)]
    for a, b in zip(*metrics, strict=True):
        # A sum of terms that cancel: what it is off by is of their size, not of its own.
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a["tokens_trained"] == b["tokens_trained"]
    weights = [await exported(one), await exported(two)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], atol=5e-6, err_msg=name)

    stored = {}
    for saver in (one, two):
        ranks, place = saver.world_size, f"short/step-000002.a00{saver.world_size}"
        await saver.save(str(tmp_path / f"from-{ranks}"))
        files = await saver.upload(str(tmp_path / f"from-{ranks}"), config.storage, place)
        names = {f.path for f in files}
        assert {"learner/metadata.json", *(f"learner/rank-0000{r}-000.safetensors" for r in range(ranks))} < names
        stored[place] = manifest_of(config, files, world_size=ranks)
    # Two ranks read a part each of what one has written, and one reads the parts of two.
    for place, saved in zip(stored, weights, strict=True):
        for learner in (one, two):
            local = str(tmp_path / f"to-{learner.world_size}")
            await learner.download(local, config.storage, place, stored[place])
            await learner.load(local, optimizer=True)
            assert not Path(local).exists()
            for name, value in (await exported(learner)).items():
                np.testing.assert_array_equal(value, saved[name], err_msg=name)
    # The optimizer came along: the next step takes both to the same place.
    for learner in (one, two):
        await learner.train(make_batch(9))
    after = [await exported(one), await exported(two)]
    for name, value in after[0].items():
        np.testing.assert_allclose(value, after[1][name], atol=5e-6, err_msg=name)


async def test_two_ranks_that_share_rows_train_like_two_that_do_not(
    start: Callable, two: RayLearner, make_config: Callable, make_recipe: Callable, make_batch: Callable
) -> None:
    shared = await start(make_config(learners=2, recipe=make_recipe(sequence_parallel=2)))
    metrics = [await learner.train(make_batch()) for learner in (shared, two)]
    for name in ("loss", "grad_norm", "entropy", "tokens_trained"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-4, abs=1e-6)
    weights = [await exported(shared), await exported(two)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], atol=5e-6, err_msg=name)
    await shared.close()


async def test_ranks_that_share_no_disk_each_bring_all_that_they_read_and_no_more(
    two: RayLearner, make_config: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config = make_config(learners=2)
    await two.train(make_batch(1))
    await two.save(str(tmp_path / "saved"))
    prefix = "short/step-000001.a001"
    files = await two.upload(str(tmp_path / "saved"), config.storage, prefix)
    assert await two._actors[1].moved.remote() >= sum(f.size for f in files if "rank-00001-" in f.path) > 0
    expected = await exported(two)
    await two.train(make_batch(2))
    after = await exported(two)
    manifest = manifest_of(config, files, world_size=2)
    machines = [tmp_path / f"machine-{rank}" for rank in range(2)]
    for actor, machine in zip(two._actors, machines, strict=True):
        await actor.download.remote(str(machine), config.storage, prefix, manifest)
    loads = [a.load.remote(str(m), True) for a, m in zip(two._actors, machines, strict=True)]
    for load in loads:
        await load
    for name, value in (await exported(two)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    await two.train(make_batch(2))
    for name, value in (await exported(two)).items():
        np.testing.assert_array_equal(value, after[name], err_msg=f"{name}: the optimizer came along")
    sizes = {f.path: f.size for f in files}
    for rank, machine in enumerate(machines):
        foreign = [p for p in machine.glob("learner/*.safetensors") if not p.name.startswith(f"rank-0000{rank}-")]
        shards = max(size for path, size in sizes.items() if f"rank-0000{1 - rank}-" in path)
        assert all(p.stat().st_size < shards for p in foreign), "of another rank's files only the scalars"


async def test_two_ranks_export_one_model_after_they_have_saved(
    two: RayLearner, make_config: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    config = make_config(learners=2)
    await two.save(str(tmp_path / "saved"))
    await two.upload(str(tmp_path / "saved"), config.storage, "short/step-000001.a001")
    await two.save_pretrained(str(tmp_path / "model"))
    files = await two.upload(str(tmp_path / "model"), config.storage, "short/export/step-000001.a001")
    assert {"config.json", "model.safetensors"} <= {f.path for f in files}
    stored = load_file(tmp_path / "store/short/export/step-000001.a001/model.safetensors")
    for name, value in load_file(tiny_model() / "model.safetensors").items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)


async def test_work_beside_training_is_given_the_model_that_it_began_with(
    two: RayLearner, tiny_model: Callable
) -> None:
    assert await two.beside(os.fspath) == str(tiny_model())


async def test_work_beside_that_nobody_waits_for_any_more_holds_up_neither_the_ranks_nor_their_end(
    one: RayLearner,
    kept: dict[int, Kept],
    started: list[RayLearner],
    make_batch: Callable,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started.append(kept.pop(1).learner)
    process = Path(f"/proc/{await one.beside(lambda _model: os.getpid())}")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await one.beside(lambda _model: time.sleep(600))
    assert np.isfinite((await one.train(make_batch(1)))["loss"])
    await one.close()
    assert "did not close" not in caplog.text
    async with asyncio.timeout(120):
        while process.exists():
            await asyncio.sleep(0.1)


async def test_two_ranks_send_one_model_to_the_samplers_that_are_there(
    two: RayLearner, make_batch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two.train(make_batch(1))
    by_store = await exported(two)
    monkeypatch.setattr(two, "_way", Way.BROADCAST)  # which is chosen for GPUs
    refs = await two.export_weights()
    assert refs.chunks == ()
    assert refs.broadcast is not None
    assert refs.send is not None
    there = [asyncio.create_task(asyncio.to_thread(received, refs.to(f"sampler-{n}").broadcast)) for n in (1, 2)]
    await refs.send(["sampler-1", "sampler-2"])
    for found in await asyncio.gather(*there):
        assert [*found] == [*by_store]
        for name, value in by_store.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def received(offer: BroadcastWeights) -> dict[str, np.ndarray]:
    import torch
    from torch._C._distributed_c10d import TCPStore

    from deepcoder_trainer.broadcast import BroadcastGroup, buckets, placed

    store = TCPStore(offer.host, offer.port, None, is_master=False, timeout=timedelta(seconds=240))
    group = BroadcastGroup(store, offer.receiver, 1, 2, torch.device("cpu"))
    group.connect()
    found = {}
    for size, bucket in buckets(offer.tensors, torch.float32):
        buffer = torch.empty(size, dtype=torch.uint8)
        group.finish(group.begin(buffer))
        found |= {name: placed(buffer, *place).numpy().copy() for name, *place in bucket}
    return found


def test_weights_go_from_card_to_card_unless_it_is_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WAY, raising=False)
    assert way_between_gpus() is Way.BROADCAST
    monkeypatch.setenv(WAY, "ObjectStore")
    assert way_between_gpus() is Way.STORE
    monkeypatch.setenv(WAY, "Card")
    with pytest.raises(BadConfig, match=f"{WAY} is 'Card': set it to NCCL or ObjectStore"):
        way_between_gpus()


async def test_a_rank_that_waits_for_another_is_told_with_its_call_and_the_line_at_which_it_stands(
    two: RayLearner, make_batch: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = plan_batch(make_batch(), two._recipe, two._capacity, 2)
    first, second = two._actors
    trains = first.train.remote(plans[0])  # until the second takes part
    async with asyncio.timeout(120):
        while not [p for p in (await first.where.remote()).places if (p.call, "/" in p.at) == ("train", True)]:
            await asyncio.sleep(0.05)
    alone = RayLearner([first], two._recipe, two._capacity, Deadlines(state=1, where=60))
    looks, look_in = [], alone._look_in

    async def note(seconds: float, tasks: Any, what: str) -> None:
        looks.append((seconds, what))

    monkeypatch.setattr(alone, "_look_in", note)  # half a second may be too short for an answer: it is asked below
    where = r"rank 0 in train for \d+ s at deepcoder_trainer/\w+/\w+\.py:\d+ in \w+"
    with pytest.raises(LearnerLost, match=rf"^no answer from learner rank 0 within 1 s \(unpark\): {where}$"):
        await alone.unpark()
    assert looks == [(0.5, "unpark")], "when half of the time is over"
    await look_in(0, [asyncio.get_running_loop().create_future()], "unpark")
    assert re.search(rf"no answer from learner rank 0 for 0 s \(unpark\): {where}\n", caplog.text)
    assert re.search(
        r"threads of learner rank 0, of rank 0:\nthread \S+, which answers train:\n  \S+:\d+ in ", caplog.text
    )
    await second.train.remote(plans[1])
    await trains


async def test_a_rank_that_dies_fails_the_step_at_once(
    two: RayLearner, kept: dict[int, Kept], started: list[RayLearner], make_batch: Callable
) -> None:
    started.append(kept.pop(2).learner)
    ray.kill(two._actors[1])
    with pytest.raises(LearnerLost, match="died during training step 1"):
        await two.train(make_batch())


async def test_ranks_that_cannot_be_placed_are_named_with_what_the_cluster_offers(
    make_config: Callable, tiny_model: Callable
) -> None:
    # Six of them may have been placed, and may even have answered.
    with pytest.raises(
        LearnerLost, match=r"no answer from learner ranks? [\d, -]+ within .*'learner' resources.*offers 6"
    ):
        await start_learners(make_config(learners=7), tiny_model(), deadlines=Deadlines(start=1, where=1))


async def test_a_model_that_is_refused_is_refused_across_the_process_boundary(
    make_config: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    shutil.copy(tiny_model() / "config.json", tmp_path)
    with pytest.raises(BadConfig, match=r"no model\.safetensors") as e:
        await start_learners(make_config(), tmp_path, deadlines=Deadlines(start=240))
    assert e.value.field == "model.uri"


async def test_a_model_of_unknown_sizes_is_refused_before_any_rank_is_asked_for(
    make_config: Callable, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 32}')
    with pytest.raises(BadConfig, match="does not say num_attention_heads, num_hidden_layers") as e:
        await start_learners(make_config(), tmp_path)
    assert e.value.field == "model.uri"
