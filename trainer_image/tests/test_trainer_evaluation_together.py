"""Two processes or stages with the same inputs, and what readers make of results that were changed since."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import s3_server
from evaluation_world import DIGEST, RUN, Context, export, make_context, model_folder, results_of

from deepcoder_contracts.layout import evaluation_dir
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation import commit as committing
from deepcoder_trainer.evaluation.commit import Evaluated
from deepcoder_trainer.evaluation.compare import compare_sides, open_side
from deepcoder_trainer.evaluation.results import metrics
from deepcoder_trainer.evaluation.run import run_evaluate_stage
from deepcoder_trainer.report.history import read_history
from deepcoder_trainer.running import runner
from deepcoder_trainer.types import Outcome, Problem


def of_stage(context: Context, name: str) -> Context:
    stage = context.config.stage.model_copy(update={"name": name})
    return replace(context, config=context.config.model_copy(update={"stage": stage}))


async def test_a_stage_whose_inputs_another_stage_has_measured_has_the_same_results_under_its_own_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_context(tmp_path, ["Base", "short"], problems=4)
    export(first.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    measured = await run_evaluate_stage(first)
    second = of_stage(make_context(tmp_path, ["Base", "short"], problems=4), "final")
    with caplog.at_level("INFO"):
        taken = await run_evaluate_stage(second)
    assert second.sampler.asked == [], "nothing is sampled again"  # type: ignore[attr-defined]
    assert "are results of stage exam: they are stored as those of stage final, too" in caplog.text
    assert (taken.metrics, taken.stage, measured.stage) == (measured.metrics, "final", "exam")
    assert taken.found is not None, "they are said to be earlier results"
    assert taken.key != measured.key
    for stage in ("exam", "final"):
        assert runner._measured(first.store, stage) == measured.metrics, "a gate finds them"

    # They are whole, they have the lineage of what was measured, and readers find all files below their own key.
    links = [list(walk_chain(f"{first.store.uri}/{evaluation_dir(each.key)}", deep=True)) for each in (measured, taken)]
    assert [not link.problems for chain in links for link in chain] == [True] * 6
    assert [link.digest for link in links[0][1:]] == [link.digest for link in links[1][1:]]
    of_first, of_second = (open_side(f"{first.store.uri}/{evaluation_dir(e.key)}", "short") for e in (measured, taken))
    assert (of_first.scores("held").solved == of_second.scores("held").solved).all()
    assert of_second.results.targets == of_first.results.targets
    assert [e.manifest.stage for e in read_history(first.store).evaluations] == ["exam", "final"]

    # The stage's next attempt finds its own, as a stage that has measured does.
    again = of_stage(make_context(tmp_path, ["Base", "short"], problems=4), "final")
    found = await run_evaluate_stage(again)
    assert (found.key, found.metrics) == (taken.key, taken.metrics)
    assert len(read_history(first.store).evaluations) == 2


@pytest.mark.s3
async def test_the_operator_finds_results_of_every_stage_although_two_stages_have_the_same_inputs(
    s3: Any, tmp_path: Path
) -> None:
    from deepcoder_operator.storage.findings import Findings
    from deepcoder_operator.storage.reader import RunFolder, read_stage
    from deepcoder_operator.storage.s3 import Buckets, Credentials, Target

    key = str(uuid4())
    store = open_storage(f"s3://{s3.bucket}/{key}", s3.endpoint)
    metrics_of = {}
    for stage in ("exam", "final"):
        context = replace(of_stage(make_context(tmp_path, ["Base"], problems=4), stage), store=store)
        metrics_of[stage] = (await run_evaluate_stage(context)).metrics
    credentials = Credentials(s3_server.ACCESS, s3_server.SECRET)
    bucket = Buckets().open(Target(s3.endpoint, None, credentials), s3.bucket)
    for stage, figures in metrics_of.items():
        folder = RunFolder(bucket, key, RUN, DIGEST)
        stored = read_stage(folder, stage, evaluate=True, ordinal=None, known=frozenset(), findings=Findings())
        assert (stored.evaluated, stored.metrics, stored.rejected) == (True, figures, ())


@pytest.mark.s3
async def test_of_two_processes_that_measure_one_key_in_s3_the_first_ones_results_stay_and_count_for_both(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{s3.bucket}/{uuid4()}"
    store = open_storage(uri, s3.endpoint)

    async def generous(problem: Problem, response: str, key: str) -> Outcome:
        return Outcome(1.0, "passed", 0.01)

    def context(name: str) -> Context:
        (tmp_path / name).mkdir()
        return replace(make_context(tmp_path, ["Base"], problems=4), store=store, workdir=tmp_path / name)

    late, other = replace(context("late"), reward=generous), context("other")
    upload = committing.upload_files
    first: list[Evaluated] = []

    def upload_files(*arguments: Any) -> Any:
        """Between the late one's look for results and its own files, the other one commits."""
        if (tmp_path / "late") in arguments[2].parents and not first:
            store.delete_prefix(f"{arguments[1]}/parts/")  # it has samples of its own
            first.append(asyncio.run(run_evaluate_stage(other)))
        return upload(*arguments)

    monkeypatch.setattr(committing, "upload_files", upload_files)
    done = await run_evaluate_stage(late)
    [winner] = first
    assert (done.key, done.metrics) == (winner.key, winner.metrics)
    assert done.metrics["eval/held/pass_at_1"] < 1, "what the late one measured is not what is stored"
    assert done.found is not None
    [link] = walk_chain(f"{uri}/{evaluation_dir(done.key)}", deep=True, endpoint=s3.endpoint)
    assert (link.manifest is not None, link.problems) == (True, ())
    side = open_side(f"{uri}/{evaluation_dir(done.key)}", None, s3.endpoint)
    assert metrics(side.results.targets) == done.metrics
    assert side.scores("held").solved.shape == (4, 4)
    assert link.manifest is not None
    listed = {"MANIFEST.json", *(entry.path for entry in link.manifest.files)}
    folder = f"{evaluation_dir(done.key)}/"
    assert {o.key.removeprefix(folder) for o in store.list(folder)} == listed, "the late one's files are gone"


def cheat(data: bytes) -> bytes:
    document = json.loads(data)
    document["targets"]["Base"]["held"]["passAt1"]["mean"] = 0.99
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("results.json", cheat),
        ("results.json", None),
        ("samples/Base/held.parquet", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("samples/Base/held.parquet", None),
    ],
)
async def test_results_and_samples_that_are_not_as_committed_are_neither_shown_nor_compared_nor_taken(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    context = make_context(tmp_path, ["Base"], problems=4)
    done = await run_evaluate_stage(context)
    folder = tmp_path / "storage" / "eval" / done.key
    sound = open_side(str(folder), None)
    file = folder / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CheckpointDamaged, match=name.rpartition("/")[2]):
        compare_sides(sound, open_side(str(folder), None))
    if name == "results.json":
        with pytest.raises(CheckpointDamaged, match=name):
            read_history(context.store)
    if name == "results.json" or change is None:
        with pytest.raises(BadConfig, match=r"damaged since .* remove that folder") as refused:
            await run_evaluate_stage(make_context(tmp_path, ["Base"], problems=4))
        assert refused.value.field == "storage.uri"
        again = replace(make_context(tmp_path, ["Base"], problems=4), again=True)
        beside = await run_evaluate_stage(again)
        assert (beside.found, beside.metrics, beside.key == done.key) == (None, done.metrics, False)


async def test_samples_that_are_not_as_committed_are_not_taken_for_another_stage(tmp_path: Path) -> None:
    done = await run_evaluate_stage(make_context(tmp_path, ["Base"], problems=4))
    file = tmp_path / "storage" / "eval" / done.key / "samples" / "Base" / "held.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size, which is all that is compared at first
    second = of_stage(make_context(tmp_path, ["Base"], problems=4), "final")
    with pytest.raises(BadConfig, match=r"damaged since .*held\.parquet.* remove that folder") as refused:
        await run_evaluate_stage(second)
    assert refused.value.field == "storage.uri"
    assert runner._measured(second.store, "final") == {}


async def test_a_folder_of_something_else_is_no_evaluation(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base"], problems=4)
    done = await run_evaluate_stage(context)
    manifest = tmp_path / "storage" / "eval" / done.key / "MANIFEST.json"
    document = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**document, "kind": "Export"}))
    with pytest.raises(CheckpointDamaged, match="is of kind Export, not Evaluation"):
        open_side(str(manifest.parent), None)
    assert results_of(context).key == done.key
