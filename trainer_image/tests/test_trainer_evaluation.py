"""Carrying an evaluation out: who answers what, what is stored, and what a restart does not do again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import ScriptedSampler, broken_judge, export, make_context, model_folder, results_of

from deepcoder_contracts.layout import evaluation_dir
from deepcoder_contracts.manifest import ManifestKind
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation import run as evaluation_run
from deepcoder_trainer.evaluation.run import evaluate_weights, run_evaluate_stage
from deepcoder_trainer.ports import SandboxUnavailable
from deepcoder_trainer.report.history import before_and_after, read_history


async def test_targets_answer_the_same_problems_and_are_paired(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base", "short", "long"])
    export(context.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    export(context.store, model_folder(tmp_path / "l", 0.9), "long", 5)
    figures = await run_evaluate_stage(context)
    results = results_of(context)
    means = {t: r["held"].pass_at_1.mean for t, r in results.in_order.items() if r["held"].pass_at_1}
    assert list(means) == ["Base", "short", "long"]
    assert means["Base"] < means["short"] < means["long"]
    assert figures["eval/held/pass_at_1"] == means["long"]
    assert [(c.before, c.after) for c in results.comparisons] == [
        ("Base", "short"),
        ("Base", "long"),
        ("short", "long"),
    ]
    assert all(c.difference.low > 0 for c in results.comparisons)
    sampler = context.sampler
    assert isinstance(sampler, ScriptedSampler)
    assert len(sampler.asked) == 3 * 40 * 4
    assert len({r.seed for r in sampler.asked}) == 40 * 4
    assert {(r.max_tokens, r.temperature, r.top_p) for r in sampler.asked} == {(32, 0.6, 0.95)}

    # The manifest continues the lineage of what was measured last, and every file is as it says.
    links = list(walk_chain(f"{context.store.uri}/{evaluation_dir(results.key)}", deep=True))
    assert [link.manifest.kind for link in links if link.manifest] == [ManifestKind.EVALUATION, ManifestKind.EXPORT]
    assert not any(link.problems for link in links)

    # The report finds it, and one problem that only the last one solved.
    history = read_history(context.store)
    assert history.newest == evaluation_dir(results.key)
    example = before_and_after(context.store, history.evaluations[0])
    assert example is not None
    assert (example.before, example.before_response, example.after, example.after_response) == (
        "Base",
        "wrong",
        "long",
        "right",
    )


async def test_each_target_is_told_under_its_own_name_as_soon_as_it_is_measured(tmp_path: Path) -> None:
    told: list[Mapping[str, float]] = []
    context = replace(make_context(tmp_path, ["Base", "short"]), told=told.append)
    export(context.store, model_folder(tmp_path / "s", 0.9), "short", 5)
    figures = await run_evaluate_stage(context)
    assert [set(each) for each in told] == [
        {f"eval/held/{target}/{figure}" for figure in ("pass_at_1", "truncated_ratio", "response_tokens_mean")}
        for target in ("Base", "short")
    ]
    assert told[1]["eval/held/short/pass_at_1"] == figures["eval/held/pass_at_1"]
    assert told[0]["eval/held/Base/pass_at_1"] == figures["eval/held/Base/pass_at_1"]


async def test_committed_evaluation_is_not_done_again(tmp_path: Path) -> None:
    first = await run_evaluate_stage(make_context(tmp_path, ["Base"]))
    again = make_context(tmp_path, ["Base"])
    assert await run_evaluate_stage(again) == first
    assert again.sampler.asked == []  # type: ignore[attr-defined]


async def test_attempt_that_was_killed_asks_only_the_targets_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(tmp_path, ["Base", "short"])
    export(context.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    with monkeypatch.context() as killed:
        killed.setattr(evaluation_run, "_commit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            await run_evaluate_stage(context)
    (key,) = {o.key.split("/")[1] for o in context.store.list("eval/")}
    Path(f"{context.store.uri.removeprefix('file://')}/eval/{key}/samples/short/held.parquet").unlink()
    again = make_context(tmp_path, ["Base", "short"])
    await run_evaluate_stage(again)
    assert len(again.sampler.asked) == 40 * 4  # type: ignore[attr-defined]
    assert list(results_of(again).in_order) == ["Base", "short"]


async def test_default_target_is_the_newest_stage_that_exported(tmp_path: Path) -> None:
    context = make_context(tmp_path, [])
    export(context.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    await run_evaluate_stage(context)
    assert list(results_of(context).targets) == ["short"]


async def test_target_without_an_export_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="names long, which has exported no model"):
        await run_evaluate_stage(make_context(tmp_path, ["long"]))


async def test_judges_that_fail_conclude_nothing(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base"], broken_judge)
    with pytest.raises(SandboxUnavailable, match=r"160 of 160 .* see the judges' logs; of mathematics this log"):
        await run_evaluate_stage(context)
    assert context.store.list("eval/") == []


async def test_evaluation_within_training_measures_the_weights_that_are_out(tmp_path: Path) -> None:
    context = make_context(tmp_path, [], train=True)
    context.sampler.skill = 0.5  # type: ignore[attr-defined]
    figures = await evaluate_weights(context, 3)
    assert 0.3 < figures["eval/held/pass_at_1"] < 0.7
    context.sampler.skill = 0.9  # type: ignore[attr-defined]
    assert (await evaluate_weights(context, 4))["eval/held/pass_at_1"] > 0.8
    manifests = [
        read_manifest(context.store, o.key.rsplit("/", 1)[0])[0]
        for o in context.store.list("eval/")
        if o.key.endswith("MANIFEST.json")
    ]
    assert sorted(m.step for m in manifests) == [3, 4]
    assert {m.stage for m in manifests} == {"short"}


async def test_storage_that_does_not_answer_costs_no_evaluation_within_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context(tmp_path, [], train=True)
    context.sampler.skill = 0.5  # type: ignore[attr-defined]

    def dead(*_: Any, **__: Any) -> Any:
        raise StorageUnavailable("the line is dead")

    for method in ("get_file", "put_file", "put_bytes"):
        monkeypatch.setattr(context.store, method, dead)
    assert 0.3 < (await evaluate_weights(context, 3))["eval/held/pass_at_1"] < 0.7
    assert "the line is dead" in caplog.text
