"""A run curates its own set: once, whatever is killed, and every later attempt and stage finds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curation_attempt
import held_judges
import pytest
from curation_world import ADD, livecodebench_row, own_row, taco_row, write_jsonl
from judge_pods import judge_server
from lost_answers import lose_the_first_answer

from deepcoder_contracts.curation import CurationManifest, Layout
from deepcoder_contracts.layout import parse_curation_dir
from deepcoder_contracts.stage import JudgeEndpoint, StageConfig, Storage
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.curation.progress import Figures
from deepcoder_trainer.curation.stage import CuratedSet, RunCuration, curated_set, find_curated
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.backend import Judgement
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.problems.dataset import load_dataset
from deepcoder_trainer.problems.files import DatasetError
from deepcoder_trainer.tokenizer import load_tokenizer
from deepcoder_trainer.types import Problem

pytestmark = pytest.mark.early

PROBLEMS = 24
SLOW = "import time; time.sleep(0.02)\nprint(sum(map(int, input().split())))"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer; nothing here reads weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    return folder


def rows(count: int = PROBLEMS) -> list[dict[str, Any]]:
    return [
        taco_row(question=f"Problem number {n}: {ADD}" + f" word{n}" * 40, solutions=[f"{SLOW}  # {n}"])
        for n in range(count)
    ]


def curating(
    make_config: Callable[..., StageConfig], folder: Path, model: Path, problems: int = PROBLEMS, **more: Any
) -> StageConfig:
    """A config whose sets are in files of `folder`."""
    curate = {
        "inputs": [
            {"name": "taco", "uri": str(write_jsonl(folder / "taco.jsonl", rows(problems))), "layout": "Taco"},
            {"name": "lcb", "uri": str(write_jsonl(folder / "lcb.jsonl", [livecodebench_row()]))},
        ],
        "against": [{"name": "test", "uri": str(write_jsonl(folder / "test.jsonl", [own_row()]))}],
    }
    settings = {"model": {"uri": str(model)}, "dataset": {"curation": curate | more.pop("curate", {})}, **more}
    recipe = more.pop("recipe", None)
    return make_config(recipe=recipe, **settings).model_copy(update={"recipe": _long_prompts(make_config, recipe)})


def _long_prompts(make_config: Callable[..., StageConfig], recipe: Any) -> Any:
    return (recipe or make_config().recipe).model_copy(update={"max_prompt_tokens": 2048})


def journal_keys(store: ObjectStore) -> list[str]:
    pages = [store.get_bytes(o.key) for o in store.list("curation/journal/")]
    return [json.loads(line)["key"] for page in pages for line in page.splitlines()]


@pytest.mark.s3
def test_an_attempt_that_is_killed_is_followed_by_one_that_judges_nothing_twice(
    make_config: Callable[..., StageConfig], model: Path, tmp_path: Path, s3: Any
) -> None:
    storage = Storage(uri=f"s3://{s3.bucket}/kill-{tmp_path.name}/run", endpoint=s3.endpoint)
    config = curating(make_config, tmp_path, model, storage=storage)
    store = open_run_storage(storage)

    def start(ordinal: int, judged: int = PROBLEMS) -> subprocess.Popen[str]:
        folder = tmp_path / f"machine-{ordinal}"  # nothing of a machine is left to the next attempt
        folder.mkdir()
        (folder / "stage.json").write_bytes(config.model_copy(update={"ordinal": ordinal}).to_json())
        return subprocess.Popen(
            [
                *(sys.executable, held_judges.__file__, str(judged)),
                *(curation_attempt.__file__, folder / "stage.json", folder),
            ],
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"log-{ordinal}").open("w"),
            text=True,
        )

    for ordinal, least, judged in ((1, 3, 5), (2, 10, 8)):
        process = start(ordinal, judged)
        deadline = time.monotonic() + 180
        try:
            while len(journal_keys(store)) < least:
                assert process.poll() is None, (tmp_path / f"log-{ordinal}").read_text()
                assert time.monotonic() < deadline, "waiting for verdicts in storage"
                time.sleep(0.02)
        finally:
            process.kill()  # it would wait for its judges for ever
        assert process.wait() == -signal.SIGKILL
        assert find_curated(store, config) is None, "what is not whole has no manifest"
    before = len(journal_keys(store))
    process = start(3)
    made, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (tmp_path / "log-3").read_text()

    keys = journal_keys(store)
    assert max(Counter(keys).values()) == 1, "no verdict was asked for twice"
    assert len(keys) == PROBLEMS
    manifest = find_curated(store, config)
    assert manifest is not None
    assert (manifest.ordinal, manifest.read, manifest.kept) == (3, PROBLEMS + 1, PROBLEMS + 1)
    [key] = {parse_curation_dir(o.key.rpartition("/")[0]) for o in store.list("curation/") if "MANIFEST" in o.key}
    assert key == manifest.key == manifest.recomputed_key
    path, sha256 = made.split()
    assert manifest.dataset_digest == f"sha256:{sha256}" == load_dataset(path).digest
    stored = {e.path.rpartition("/")[2]: e for e in manifest.files}
    assert {"problems.jsonl", "problems.parquet", "report.md", "report.json", "SHA256SUMS"} <= stored.keys()
    report = json.loads(store.get_bytes(f"curation/{key}/{stored['report.json'].path}"))
    assert report["judging"] == {"judged": PROBLEMS - before, "known": before}
    assert f"verify {PROBLEMS + 1} {PROBLEMS + 1}" in (tmp_path / "log-3").read_text()


class Nobody:
    """A judge that must not be asked."""

    errors = 0
    capacity = 4
    retries: Counter[str] = Counter()

    async def judge(self, submission: Submission) -> Judgement:
        raise AssertionError("a curation that was done before asks no judge")

    def refusal(self, problem: Problem) -> str | None:
        return None

    async def run(self) -> None: ...

    async def close(self) -> None: ...


def later(config: StageConfig, folder: Path, **changes: Any) -> RunCuration:
    """What a later attempt has, which finds judges gone."""
    folder.mkdir()
    config = config.model_copy(update={"ordinal": 7, **changes})
    sources = Sources(cache=folder / "cache")
    model = sources.model(config.model)
    store = open_run_storage(config.storage)
    told = Figures(lambda *_: None)
    return RunCuration(config, store, sources, folder, model, load_tokenizer(model), Nobody(), told)


async def first(config: StageConfig, folder: Path, tmp_path: Path) -> CuratedSet:
    """Curate with a real judge in another process."""
    token = tmp_path / "token"
    token.write_text("secret" * 8)
    with judge_server(token) as server:
        endpoint = JudgeEndpoint(backend="Pool", host=server.address, port=server.port, token_file=str(token))
        folder.mkdir()
        return await curation_attempt.attempt(config.model_copy(update={"judge": endpoint}), folder, None)


async def test_later_attempts_and_stages_find_it_though_its_sources_are_gone(
    make_config: Callable[..., StageConfig], model: Path, tmp_path: Path
) -> None:
    config = curating(make_config, tmp_path / "sets", model, problems=3)
    made = await first(config, tmp_path / "one", tmp_path)
    for path in (tmp_path / "sets").iterdir():
        path.unlink()
    found = await curated_set(later(config, tmp_path / "two"))
    assert found.path != made.path
    assert found.sha256 == made.sha256
    assert found.path.read_bytes() == made.path.read_bytes()
    next_stage = config.stage.model_copy(update={"name": "long", "index": 1})
    assert (await curated_set(later(config, tmp_path / "three", stage=next_stage))).sha256 == made.sha256

    stranger = config.run.model_copy(update={"uid": "99999999-2222-3333-4444-555555555555"})
    with pytest.raises(BadConfig, match="does not exist"):  # another run's is not found, so its sources are looked for
        await curated_set(later(config, tmp_path / "four", run=stranger))
    recipe = config.recipe.model_copy(update={"max_prompt_tokens": 1024})
    with pytest.raises(BadConfig, match="does not exist"):  # nor that of another wish
        await curated_set(later(config, tmp_path / "five", recipe=recipe))


async def test_storage_that_is_away_for_a_moment_when_the_manifest_is_put_costs_no_curation(
    make_config: Callable[..., StageConfig], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = lose_the_first_answer(monkeypatch, FileStore)
    config = curating(make_config, tmp_path / "sets", model, problems=2)
    await first(config, tmp_path / "one", tmp_path)
    manifest = find_curated(open_run_storage(config.storage), config)
    assert manifest is not None
    assert keys == [f"curation/{manifest.key}/MANIFEST.json"] * 2


async def test_a_set_that_was_changed_in_storage_is_not_trained_on(
    make_config: Callable[..., StageConfig], model: Path, tmp_path: Path
) -> None:
    config = curating(make_config, tmp_path / "sets", model, problems=2)
    await first(config, tmp_path / "one", tmp_path)
    store = open_run_storage(config.storage)
    manifest = find_curated(store, config)
    assert manifest is not None
    place = f"curation/{manifest.key}"
    store.put_bytes(f"{place}/{manifest.dataset}", b"{}\n")
    with pytest.raises(CheckpointDamaged, match=r"problems\.jsonl has"):
        await curated_set(later(config, tmp_path / "two"))
    forged = CurationManifest.from_json(manifest.to_json()).model_copy(update={"inputs": manifest.inputs[:1]})
    Path(f"{config.storage.uri.removeprefix('file://')}/{place}/MANIFEST.json").write_bytes(forged.to_json())
    assert find_curated(store, config) is None, "its key is not that of what it names"


async def test_of_two_sets_that_answer_one_wish_the_one_that_was_committed_first_counts(
    make_config: Callable[..., StageConfig], model: Path, tmp_path: Path
) -> None:
    config = curating(make_config, tmp_path / "sets", model, problems=1)
    await first(config, tmp_path / "one", tmp_path)
    store = open_run_storage(config.storage)
    made = find_curated(store, config)
    assert made is not None
    other = CurationManifest.from_json(made.to_json()).model_copy(update={"code_digest": f"sha256:{'0' * 64}"})
    other = other.model_copy(update={"key": other.recomputed_key})
    store.put_bytes(f"curation/{other.key}/MANIFEST.json", other.to_json())
    for order in ([made.key, other.key], [other.key, made.key]):
        for hour, key in enumerate(order):
            os.utime(
                Path(config.storage.uri.removeprefix("file://")) / f"curation/{key}/MANIFEST.json",
                (3600 * hour, 3600 * hour),
            )
        found = find_curated(store, config)
        assert found is not None
        assert found.key == order[0]


async def test_inputs_that_are_not_what_was_meant_end_it_by_field(
    make_config: Callable[..., StageConfig], model: Path, tmp_path: Path
) -> None:
    config = curating(make_config, tmp_path / "sets", model, problems=1)
    assert config.dataset is not None
    curate = config.dataset.curation
    assert curate is not None

    def with_input(**changes: Any) -> dict[str, Any]:
        inputs = [curate.inputs[0].model_copy(update=changes)]
        return {"dataset": config.dataset.model_copy(update={"curation": curate.model_copy(update={"inputs": inputs})})}  # type: ignore[union-attr]

    with pytest.raises(DatasetError, match=r"dataset\.curation\.inputs\[taco\]\.sha256: .* expected 0000"):
        await curated_set(later(config, tmp_path / "a", **with_input(sha256="0" * 64)))
    with pytest.raises(DatasetError, match="layout LiveCodeBench has public_test_cases, question_content"):
        await curated_set(later(config, tmp_path / "b", **with_input(layout=Layout.LIVECODEBENCH)))
