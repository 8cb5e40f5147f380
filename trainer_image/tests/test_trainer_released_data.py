"""The shipped recipes start on the data that they name, as it lies on the hub after the download they tell of."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from curation_world import codeforces_row, own_row, write_jsonl
from released_world import STARTER, taco_rows, write_hub

from deepcoder_contracts.curation import CurationSet
from deepcoder_contracts.judge import Kind, Scoring
from deepcoder_contracts.stage import DatasetSource, EvaluationDataset
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.evaluation.benchmarks import load_benchmark
from deepcoder_trainer.problems.dataset import DatasetError, load_dataset
from deepcoder_trainer.problems.path_metadata import EVALUATION, TRAINING, of_splits

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BUCKET = "s3://my-bucket/datasets/deepcoder"
OF_THE_RELEASE = sorted(p for p in EXAMPLES.rglob("*.yaml") if BUCKET in p.read_text())
TRAINED = ["lcbv5", "primeintellect", "taco"]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set's repository."""
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def bucket(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands at the head of the 14B recipe bring to the bucket."""
    place = tmp_path_factory.mktemp("bucket")
    downloads = re.findall(
        r"# *hf download agentica-org/DeepCoder-Preview-Dataset .*--include '(\S+)' --local-dir deepcoder-data/(\w+)",
        (EXAMPLES / "deepcoder-14b.yaml").read_text(),
    )
    assert downloads
    for pattern, folder in downloads:
        for file in hub.rglob("*.parquet"):
            name = file.relative_to(hub).as_posix()
            if fnmatch.fnmatch(name, pattern):
                (place / folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place / folder / name)
    return place


def specs(path: Path) -> list[dict[str, Any]]:
    return [d["spec"] for d in yaml.safe_load_all(path.read_text()) if d and d["kind"] == "DeepCoderRun"]


def local(uri: str, bucket: Path) -> Path:
    """What a run would read at `uri`."""
    return Sources().dataset(uri.replace(BUCKET, str(bucket)))


@pytest.mark.parametrize("path", OF_THE_RELEASE, ids=lambda p: p.stem)
def test_a_recipe_trains_on_the_training_problems_and_measures_the_others(path: Path, bucket: Path) -> None:
    for spec in specs(path):
        trained = set()
        if "dataset" in spec and (uri := DatasetSource.model_validate(spec["dataset"]).uri) is not None:
            problems = load_dataset(local(uri, bucket)).problems
            assert sorted({p.source for p in problems}) == ["livecodebench", "primeintellect", "taco"]
            assert len(problems) == 5
            trained = {p.prompt for p in problems}
        sets = [e for stage in spec["stages"] for e in (stage.get("evaluate") or {}).get("datasets", ())]
        for each in sets:
            settings = EvaluationDataset.model_validate(each)
            measured = load_benchmark(local(settings.uri, bucket), settings).problems
            assert [p.scoring for p in measured] == [Scoring.LIVECODEBENCH] * 2
            assert [p.fn_name for p in measured] == [None, "repeat"]
            assert not trained & {p.prompt for p in measured}
        against = (spec.get("dataset", {}).get("curation") or {}).get("against", ())
        assert {local(CurationSet.model_validate(s).uri, bucket) for s in against} <= {bucket / "test" / "lcbv5"}


@pytest.mark.s3
def test_the_14b_recipe_reads_its_sets_from_a_bucket(bucket: Path, tmp_path: Path, s3: Any) -> None:
    place = f"s3://{s3.bucket}/{uuid4()}/datasets/deepcoder"
    store = open_storage(place, s3.endpoint)
    for file in bucket.rglob("*.parquet"):
        store.put_bytes(file.relative_to(bucket).as_posix(), file.read_bytes())
    [spec] = specs(EXAMPLES / "deepcoder-14b.yaml")
    sources = Sources(cache=tmp_path, endpoint=s3.endpoint)
    trained = load_dataset(sources.dataset(spec["dataset"]["uri"].replace(BUCKET, place)))
    assert Counter(p.source for p in trained.problems) == {"livecodebench": 2, "primeintellect": 1, "taco": 2}
    settings = EvaluationDataset.model_validate(spec["stages"][0]["evaluate"]["datasets"][0])
    measured = load_benchmark(sources.dataset(settings.uri.replace(BUCKET, place)), settings)
    assert [p.scoring for p in measured.problems] == [Scoring.LIVECODEBENCH] * 2


def test_every_source_is_graded_by_its_own_rule(hub: Path) -> None:
    problems = {p.id: p for p in load_dataset(hub).problems}
    assert set(problems) == {
        "livecodebench-train-0",
        "livecodebench-train-1",
        "primeintellect-train-0",
        "taco-train-0",
        "taco-train-1",
    }
    function = problems["taco-train-1"]
    assert (function.kind, function.fn_name, len(function.tests)) == (Kind.FUNCTION, "double", 15)
    assert (function.time_limit_s, function.scoring) == (12.0, Scoring.STRICT)
    assert problems["taco-train-0"].prompt == taco_rows()[0]["problem"]
    assert len(problems["primeintellect-train-0"].tests) == 15
    program, call = problems["livecodebench-train-0"], problems["livecodebench-train-1"]
    assert (program.time_limit_s, program.scoring, len(program.tests)) == (6.0, Scoring.LIVECODEBENCH, 20)
    assert (call.kind, call.fn_name, call.tests[2].output) == (Kind.FUNCTION, "repeat", '"aa"')
    assert STARTER.strip() in call.prompt
    assert call.prompt.startswith("You are an expert Python programmer.")


@pytest.mark.parametrize("config", TRAINED)
def test_a_folder_of_one_source_is_that_source(hub: Path, config: str) -> None:
    whole = [p for p in load_dataset(hub).problems if p.source == {"lcbv5": "livecodebench"}.get(config, config)]
    assert load_dataset(hub / config).problems == tuple(whole)


def test_of_a_folder_with_both_splits_training_reads_the_one_and_evaluation_the_other(hub: Path) -> None:
    trained = {p.prompt for p in load_dataset(hub / "lcbv5").problems}
    measured = load_benchmark(hub / "lcbv5", EvaluationDataset(name="lcb", uri=str(hub)))
    assert all("Before August" in p for p in trained)
    assert all("After July" in p.prompt for p in measured.problems)
    assert len(measured.problems) == len(trained) == 2
    both = load_benchmark(hub, EvaluationDataset(name="all", uri=str(hub)))
    assert sorted(p.source for p in both.problems) == ["codeforces", "livecodebench", "livecodebench"]


def test_a_file_without_a_split_in_its_name_is_read_with_either(tmp_path: Path) -> None:
    def measured() -> list[str]:
        return [p.id for p in load_benchmark(tmp_path, EvaluationDataset(name="s", uri="/set")).problems]

    for name in ("train", "test", "test2"):  # LiveCodeBench's own files are test.jsonl, test2.jsonl, ...
        write_jsonl(tmp_path / f"{name}.jsonl", [own_row(id=name)])
    assert [p.id for p in load_dataset(tmp_path).problems] == ["test2", "train"]
    assert measured() == ["test", "test2"]
    (tmp_path / "train.jsonl").unlink()
    assert [p.id for p in load_dataset(tmp_path).problems] == ["test", "test2"]
    (tmp_path / "test.jsonl").rename(tmp_path / "validation-00000-of-00001.jsonl")
    assert measured() == ["test2", "test"], "in the order of the files' names"


def test_a_folder_for_each_split_tells_them_apart_as_the_files_names_do(tmp_path: Path) -> None:
    for place in ("default/partial-train/0000", "default/test/0000", "validation/rows", "train/test-00000", "more"):
        path = tmp_path / "test" / f"{place}.jsonl"  # what is above the set says nothing
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [own_row(id=place)])
    root = tmp_path / "test"
    assert [p.id for p in load_dataset(root).problems] == ["default/partial-train/0000", "more"]
    measured = load_benchmark(root, EvaluationDataset(name="s", uri="/set"))
    assert [p.id for p in measured.problems] == ["default/test/0000", "more", "train/test-00000"]


def test_released_rows_in_folders_for_each_split_have_ids_of_their_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "taco" / split).mkdir(parents=True)
        write_jsonl(tmp_path / "taco" / split / "0000.jsonl", taco_rows())
    assert {p.id.rsplit("-", 1)[0] for p in load_dataset(tmp_path).problems} == {"taco-train"}
    shutil.rmtree(tmp_path / "taco" / "train")
    assert {p.id.rsplit("-", 1)[0] for p in load_dataset(tmp_path).problems} == {"taco-test"}


def test_a_released_row_that_no_judge_takes_is_left_out_where_it_is_read(tmp_path: Path) -> None:
    odd = [
        {"problem": "Print it.", "tests": json.dumps({"inputs": ["\ud83d"], "outputs": ["1"]})},
        {"problem": "Half of \ud83d.", "tests": json.dumps({"inputs": ["1"], "outputs": ["1"]})},
        {"problem": "f", "tests": json.dumps({"inputs": [["[" * 201]], "outputs": [1], "fn_name": "f"})},
        {"problem": "g", "tests": '{"inputs": [[' + "[" * 201 + "]" * 201 + ']], "outputs": [1], "fn_name": "g"}'},
    ]
    (tmp_path / "taco").mkdir()
    path = write_jsonl(tmp_path / "taco" / "train.jsonl", [*taco_rows() * 200, *odd])
    found = load_dataset(path)
    assert [reason.split(": ", 1)[1][:48] for reason in found.left_out] == [
        "tests.0.input: holds a lone surrogate at charact",
        "prompt: holds a lone surrogate at character 8, w",
        "tests.0.input: nested deeper than 200 levels: fl",
    ]
    assert len(found.problems) == 401


def test_the_digest_is_that_of_what_is_read(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "lcbv5", tmp_path / "lcbv5")
    before = load_dataset(tmp_path / "lcbv5").digest
    (tmp_path / "lcbv5" / "test-00001-of-00002.parquet").unlink()
    assert load_dataset(tmp_path / "lcbv5").digest == before


def test_released_rows_of_unknown_origin_are_refused_unless_they_say_it(tmp_path: Path) -> None:
    row = codeforces_row()
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1: data_source: missing, and neither folder nor file is"):
        load_dataset(path)
    settings = EvaluationDataset(name="cf", uri="/set")
    with pytest.raises(DatasetError, match="neither folder nor file nor set is named taco, "):
        load_benchmark(path, settings)
    assert load_benchmark(path, settings.model_copy(update={"name": "codeforces"})).problems[0].source == "codeforces"
    named = write_jsonl(tmp_path / "codeforces.jsonl", [row])
    assert load_dataset(named).problems[0].source == "codeforces"
    assert "sample tests" in load_benchmark(named, settings).notes[0]
    write_jsonl(path, [{**row, "data_source": "mine"}])
    assert load_dataset(path).problems[0].source == "mine"


def test_of_many_released_rows_a_few_that_cannot_be_used_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = taco_rows()[0]
    rows = [{**row, "problem": f"{n}: {row['problem']}"} for n in range(200)]
    rows[3] = {**rows[3], "tests": json.dumps({"inputs": ["1"], "outputs": []})}
    path = tmp_path / "taco" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), path)
    dataset = load_dataset(path)
    assert len(dataset.problems) == 199
    assert [p.id for p in dataset.problems[2:4]] == ["taco-train-2", "taco-train-4"], "by their rows"
    assert "train-00000-of-00001.parquet:4: tests: inputs and outputs differ" in dataset.left_out[0]
    assert "1 rows cannot be used and are left out" in caplog.text
    for n in (5, 6):
        rows[n] = {**rows[n], "problem": " "}
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DatasetError, match="so it is with 3 of 200 problems of taco"):
        load_dataset(path)


def test_without_a_test_split_the_validation_split_is_measured(tmp_path: Path) -> None:
    train, validation = (tmp_path / f"{split}-00000-of-00001.parquet" for split in ("train", "validation"))
    assert of_splits([train, validation], tmp_path, EVALUATION) == [validation]
    assert of_splits([train, validation], tmp_path, TRAINING) == [train]
