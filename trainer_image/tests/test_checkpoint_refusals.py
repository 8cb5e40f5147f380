"""What an attempt must not decide by itself: no checkpoint is whole, or only a newer release can read the newest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_saving import save

from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import FileEntry, RunIdentity
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ConfigMismatch, NewerSchema, NothingWhole
from deepcoder_trainer.checkpoint.inputs import Inputs, reward_digest
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.reader import find_resume_point, read_manifest
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.problems.prompt import EncodedProblem, EncodedProblems
from deepcoder_trainer.types import Problem


class NoLearner:
    """Writes one small file where a learner writes its state."""

    async def save(self, directory: str) -> None:
        folder = Path(directory) / "learner"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"weights")

    async def upload(self, directory: str, storage: Any, prefix: str) -> list[FileEntry]:
        path = Path(directory) / "learner/weights"
        stored = open_run_storage(storage).put_file(f"{prefix}/learner/weights", path)
        return [FileEntry(path="learner/weights", size=stored.size, sha256=file_sha256(path))]


async def saved(config: StageConfig, tmp_path: Path, *steps: int, **made_by: Any) -> list[Path]:
    """Folders of checkpoints of these steps."""
    writer = CheckpointWriter(config, NoLearner(), workdir=tmp_path / "w", **made_by)  # type: ignore[arg-type]
    await writer.claim()
    for step in steps:
        await save(writer, PipelineState(step=step, total_steps=step, version=step, next_group_id=step), metrics={})
        await writer.wait()
    return [tmp_path / f"store/short/step-{step:06d}.a001" for step in steps]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


async def test_a_stage_without_a_whole_checkpoint_stops_instead_of_starting_over(
    make_config: Callable, tmp_path: Path
) -> None:
    config = make_config()
    folders = await saved(config, tmp_path, 1, 2)
    (folders[0] / "state.json").write_text("{}")
    (folders[1] / MANIFEST).write_text("{")
    with pytest.raises(NothingWhole) as e:
        await find_resume_point(config, None, workdir=tmp_path / "r")
    for words in ("short/step-000001.a001: ", "short/step-000002.a001: ", "restore their files", "spec.from"):
        assert words in str(e.value)
    assert isinstance(e.value, BadConfig), "exit status 64"


@pytest.mark.parametrize("count", ["step", "totalSteps"])
async def test_a_state_of_another_step_than_its_manifest_says_is_damage(
    count: str, make_config: Callable, tmp_path: Path
) -> None:
    config = make_config()
    folders = await saved(config, tmp_path, 1, 2)
    state, manifest = folders[1] / "state.json", folders[1] / MANIFEST
    edit(state, **{count: 1})
    files = json.loads(manifest.read_text())["files"]
    files[-1] |= {"size": state.stat().st_size, "sha256": file_sha256(state)}
    assert files[-1]["path"] == "state.json"
    edit(manifest, files=files)
    point = await find_resume_point(config, None, workdir=tmp_path / "r")
    assert point is not None
    assert point.manifest.step == 1


async def test_a_stage_that_has_not_saved_yet_starts_from_its_model(make_config: Callable, tmp_path: Path) -> None:
    config = make_config()
    await saved(config, tmp_path)
    assert await find_resume_point(config, None, workdir=tmp_path / "r") is None


async def test_a_checkpoint_of_a_newer_release_is_refused_by_name_and_no_older_one_stands_in(
    make_config: Callable, tmp_path: Path
) -> None:
    config = make_config()
    folders = await saved(config, tmp_path, 1, 2)
    edit(folders[1] / MANIFEST, schemaVersion=2)
    with pytest.raises(NewerSchema, match=r"step-000002\.a001/MANIFEST\.json has schemaVersion 2.*or a newer one") as e:
        await find_resume_point(config, None, workdir=tmp_path / "r")
    assert isinstance(e.value, BadConfig), "exit status 64"


@pytest.mark.parametrize("version", [0, "2", None])
def test_a_manifest_of_no_version_that_ever_was_is_damage(version: Any, make_config: Callable, tmp_path: Path) -> None:
    store = open_run_storage(make_config().storage)
    store.put_bytes(f"short/{MANIFEST}", json.dumps({"schemaVersion": version}).encode())
    with pytest.raises(CheckpointDamaged):
        read_manifest(store, "short")


def test_learner_files_of_a_newer_release_are_refused_by_name(tmp_path: Path) -> None:
    from deepcoder_trainer.learner.dcp import SafetensorsReader

    (tmp_path / "metadata.json").write_text(json.dumps({"schemaVersion": 2, "tensors": {}}))
    with pytest.raises(NewerSchema, match=r"metadata\.json has schemaVersion 2"):
        SafetensorsReader(tmp_path)


def digest_of(letter: str) -> str:
    return f"sha256:{letter * 64}"


READ = {"config.json": digest_of("c"), "tokenizer.json": digest_of("d"), "LICENSE": digest_of("e")}


@pytest.mark.parametrize("own", [True, False], ids=["its own checkpoint", "the stage before"])
async def test_a_run_does_not_go_on_with_other_problems_or_another_tokenizer(
    own: bool, make_config: Callable, tmp_path: Path
) -> None:
    config = make_config()
    await saved(config, tmp_path, 1, inputs=Inputs(digest_of("a"), READ, digest_of("1")))
    if not own:
        point = await find_resume_point(config, None, workdir=tmp_path / "1")
        assert point is not None
        config = make_config(stage="long", index=1, parent=point.ref)

    async def go_on(dataset: str, files: dict[str, str]) -> Any:
        return await find_resume_point(config, None, workdir=tmp_path / "r", inputs=Inputs(dataset, files))

    with pytest.raises(ConfigMismatch, match=r"problems with digest sha256:aaa.* now holds others .*restore them") as e:
        await go_on(digest_of("b"), READ)
    assert e.value.field == "dataset.uri"
    with pytest.raises(ConfigMismatch, match=r"with another tokenizer\.json of .*model\.revision pins a hub's") as e:
        await go_on(digest_of("a"), READ | {"tokenizer.json": digest_of("f")})
    assert e.value.field == "model.uri"
    with pytest.raises(ConfigMismatch, match=r"another chat_template\.jinja"):
        await go_on(digest_of("a"), READ | {"chat_template.jinja": digest_of("f")})
    assert (await go_on(digest_of("a"), READ | {"LICENSE": digest_of("f")})).manifest.step == 1


async def test_a_run_does_not_go_on_where_other_problems_of_its_dataset_are_left_out(
    make_config: Callable, tmp_path: Path
) -> None:
    """A release that refuses one row more draws other problems as all groups to come, under the same digest."""
    config = make_config()

    def digest(*names: str, prompt: str = "p") -> str:
        kept = [EncodedProblem(Problem(name, "s", prompt, ()), np.zeros(1, np.int32)) for name in names]
        return EncodedProblems(tuple(kept), ()).digest

    async def go_on(found: str | None) -> Any:
        inputs = Inputs(digest_of("a"), READ, problems_digest=found)
        return await find_resume_point(config, None, workdir=tmp_path / "r", inputs=inputs)

    await saved(config, tmp_path, 1, inputs=Inputs(digest_of("a"), READ, problems_digest=digest("a", "b", "c")))
    for other in (digest("b", "c"), digest("a", "b", "c", prompt="q")):
        with pytest.raises(
            ConfigMismatch, match=r"on other problems of the same dataset, or with .* use the image"
        ) as e:
            await go_on(other)
        assert e.value.field == "dataset"
    for known in (digest("a", "b", "c"), None):
        assert (await go_on(known)).manifest.step == 1


async def test_a_run_goes_on_with_a_reward_that_was_mended_and_says_so(
    make_config: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that failed on a response ends the attempt, and is mended before the next."""
    config = make_config()
    await saved(config, tmp_path, 1, inputs=Inputs(digest_of("a"), READ, digest_of("1")))
    for source, told in (("1", False), ("2", True)):
        inputs = Inputs(digest_of("a"), READ, digest_of(source))
        assert await find_resume_point(config, None, workdir=tmp_path / source, inputs=inputs) is not None
        assert ("has another source than when short/step-000001.a001 was trained" in caplog.text) is told


def test_a_reward_whose_source_cannot_be_read_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shorter_of_mine.py").write_text("def reward(problem, response): return 0.0\n")
    first = reward_digest("shorter_of_mine:reward")
    (tmp_path / "shorter_of_mine.py").write_text("def reward(problem, response): return 1.0\n")
    assert first != reward_digest("shorter_of_mine:reward")
    assert reward_digest("nowhere_to_be_found:reward") is None
    assert reward_digest(None) is None


async def test_checkpoints_from_before_inputs_were_noted_are_gone_on_from(
    make_config: Callable, tmp_path: Path
) -> None:
    config = make_config()
    await saved(config, tmp_path, 1)
    point = await find_resume_point(config, None, workdir=tmp_path / "r", inputs=Inputs(digest_of("b"), READ))
    assert point is not None


async def test_another_run_may_start_from_a_checkpoint_with_problems_of_its_own(
    make_config: Callable, tmp_path: Path
) -> None:
    config = make_config()
    await saved(config, tmp_path, 1, inputs=Inputs(digest_of("a"), READ, digest_of("1")))
    point = await find_resume_point(config, None, workdir=tmp_path / "1")
    assert point is not None
    other = make_config(
        run=RunIdentity(namespace="local", name="other", uid="99999999-2222-3333-4444-555555555555"),
        storage=Storage(uri=f"file://{tmp_path}/other"),
        parent=point.ref,
    )
    fresh = await find_resume_point(other, None, workdir=tmp_path / "2", inputs=Inputs(digest_of("b"), {}))
    assert fresh is not None
    assert not fresh.own
