"""Carrying an evaluation out: who answers what, what is stored, and what a restart does not do again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contest_world import write_contest
from evaluation_world import ScriptedSampler, broken_judge, export, make_context, model_folder, results_of
from lost_answers import lose_the_first_answer

from deepcoder_contracts.gate import Comparison, GateCondition, PromoteWhen, evaluate_gate
from deepcoder_contracts.layout import evaluation_dir
from deepcoder_contracts.manifest import ManifestKind
from deepcoder_contracts.stage import EvaluationDataset, ModelSource, StageConfig
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation import problemsets
from deepcoder_trainer.evaluation.answers import Answer
from deepcoder_trainer.evaluation.journal import Journal
from deepcoder_trainer.evaluation.problemsets import ProblemSets
from deepcoder_trainer.evaluation.run import evaluate_weights, run_evaluate_stage
from deepcoder_trainer.judge.backend import JudgeRefused
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.report.history import before_and_after, read_history
from deepcoder_trainer.types import Outcome, Problem

RATED = PromoteWhen(all=[GateCondition(metric="eval/held/rating", op=Comparison.GE, value=1881)])


async def test_targets_answer_the_same_problems_and_are_paired(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base", "short", "long"])
    export(context.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    export(context.store, model_folder(tmp_path / "l", 0.9), "long", 5)
    figures = (await run_evaluate_stage(context)).metrics
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
    kinds = [ManifestKind.EVALUATION, ManifestKind.EXPORT, ManifestKind.CHECKPOINT]
    assert [link.manifest.kind for link in links if link.manifest] == kinds
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
    figures = (await run_evaluate_stage(context)).metrics
    names = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "unjudged", "truncated_ratio", "response_tokens_mean")
    assert [set(each) for each in told] == [
        {f"eval/held/{target}/{figure}" for figure in names} for target in ("Base", "short")
    ]
    assert told[1]["eval/held/short/pass_at_1"] == figures["eval/held/pass_at_1"]
    assert told[0]["eval/held/Base/pass_at_1"] == figures["eval/held/Base/pass_at_1"]


async def test_committed_evaluation_is_not_done_again_and_says_from_when_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = await run_evaluate_stage(make_context(tmp_path, ["Base"]))
    assert first.found is None
    again = make_context(tmp_path, ["Base"])
    with caplog.at_level("INFO"):
        found = await run_evaluate_stage(again)
    assert (found.key, found.metrics) == (first.key, first.metrics)
    assert found.found is not None
    assert f"was measured before, at {found.found}" in caplog.text
    assert again.sampler.asked == []  # type: ignore[attr-defined]


async def test_storage_that_is_away_for_a_moment_when_the_manifest_is_put_costs_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = lose_the_first_answer(monkeypatch, FileStore)
    context = make_context(tmp_path, ["Base"])
    done = await run_evaluate_stage(context)
    assert keys == [f"eval/{done.key}/MANIFEST.json"] * 2
    assert (await run_evaluate_stage(context)).found is not None


async def test_attempt_that_was_stopped_asks_only_for_the_samples_that_are_left(tmp_path: Path) -> None:
    whole = make_context(tmp_path / "whole", ["Base", "short"])
    export(whole.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    await run_evaluate_stage(whole)

    context = make_context(tmp_path, ["Base", "short"])
    export(context.store, tmp_path / "s", "short", 5)
    context.sampler.ends_after = 200  # type: ignore[attr-defined]
    with pytest.raises(ExceptionGroup):
        await run_evaluate_stage(context)
    assert not [o for o in context.store.list("eval/") if o.key.endswith("MANIFEST.json")]
    again = make_context(tmp_path, ["Base", "short"])
    await run_evaluate_stage(again)
    assert len(again.sampler.asked) == 2 * 40 * 4 - 200  # type: ignore[attr-defined]
    assert again.sampler.pushed == 1, "what is left is of the second target alone"  # type: ignore[attr-defined]
    assert not [o for o in again.store.list("eval/") if "/parts/" in o.key]
    # It comes to what it would have come to at one go.
    assert results_of(again).targets == results_of(whole).targets
    assert results_of(again).comparisons == results_of(whole).comparisons


async def test_answers_whose_verdicts_are_missing_are_judged_and_not_sampled_again(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base"], broken_judge)
    with pytest.raises(SandboxUnavailable):
        await run_evaluate_stage(context)
    again = make_context(tmp_path, ["Base"])
    await run_evaluate_stage(again)
    assert again.sampler.asked == []  # type: ignore[attr-defined]
    assert results_of(again).targets["Base"]["held"].unjudged == 0


async def test_verdict_on_another_attempts_answer_is_not_taken_for_one_on_this(tmp_path: Path) -> None:
    store = open_storage(f"file://{tmp_path}")
    ours, theirs = Answer("ours", "stop", 1), Answer("theirs", "stop", 1)
    for name, answer in (("a", ours), ("b", theirs)):
        journal = Journal(store, f"parts/{name}", 60)
        journal.answered((0, 0), answer)
        journal.judged((0, 0), Outcome(float(answer is theirs), "passed", 0.1))
        await journal.flush()
        data = b"".join(store.get_bytes(o.key) for o in store.list(f"parts/{name}/"))
        lines = data.splitlines(keepends=True)
        store.put_bytes(f"both/{name}.jsonl", b"".join(lines if answer is theirs else lines[:1]))
    both = Journal(store, "both")
    await both.load()
    assert both.known[(0, 0)].answer == ours
    assert both.known[(0, 0)].outcome is None


async def test_journal_keeps_what_storage_did_not_take_for_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_storage(f"file://{tmp_path}")
    journal = Journal(store, "parts", 60)
    with monkeypatch.context() as away:
        away.setattr(store, "put_bytes", lambda *a: (_ for _ in ()).throw(StorageUnavailable("the line is dead")))
        journal.answered((0, 0), Answer("first", "stop", 1))
        await journal.flush()
    assert "the line is dead" in caplog.text
    journal.answered((0, 1), Answer("second", "stop", 1))
    await journal.flush()
    read = Journal(store, "parts")
    await read.load()
    assert [read.known[(0, n)].answer.text for n in (0, 1)] == ["first", "second"]


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
    with pytest.raises(
        SandboxUnavailable, match=r"160 of 160 .* see the judges' logs; for mathematics, and for a custom recipe"
    ):
        await run_evaluate_stage(context)
    assert not [o for o in context.store.list("eval/") if o.key.endswith("MANIFEST.json")]


async def test_more_than_one_in_a_hundred_without_a_verdict_conclude_nothing(tmp_path: Path) -> None:
    async def fails_twice(problem: Problem, response: str, key: str) -> Outcome:
        failed = key.endswith(("/7/1", "/8/1"))
        return Outcome(None, "error", 0.01, attempts=3) if failed else Outcome(1.0, "passed", 0.01)

    with pytest.raises(SandboxUnavailable, match="failed on 2 of 160 responses of held, more than 1%"):
        await run_evaluate_stage(make_context(tmp_path, ["Base"], fails_twice))


async def test_few_samples_without_a_verdict_are_counted_apart_and_never_as_wrong(tmp_path: Path) -> None:
    async def fails_once(problem: Problem, response: str, key: str) -> Outcome:
        failed = key.endswith("/7/1")
        return Outcome(None, "error", 0.01, attempts=3) if failed else Outcome(1.0, "passed", 0.01)

    context = make_context(tmp_path, ["Base"], fails_once)
    figures = (await run_evaluate_stage(context)).metrics
    assert (figures["eval/held/pass_at_1"], figures["eval/held/unjudged"]) == (1.0, 1.0)


async def test_what_judges_failed_on_is_judged_once_more_before_it_counts_as_unjudged(tmp_path: Path) -> None:
    asked: list[str] = []

    async def fails_at_first(problem: Problem, response: str, key: str) -> Outcome:
        asked.append(key)
        failed = key.endswith("/7/1") and asked.count(key) == 1
        return Outcome(None, "error", 0.01, attempts=3) if failed else Outcome(1.0, "passed", 0.01)

    context = make_context(tmp_path, ["Base"], fails_at_first)
    figures = (await run_evaluate_stage(context)).metrics
    assert (figures["eval/held/pass_at_1"], figures["eval/held/unjudged"]) == (1.0, 0.0)
    assert len(asked) == 40 * 4 + 1, "the others were judged once"
    assert len(context.sampler.asked) == 40 * 4, "and nothing was sampled again"  # type: ignore[attr-defined]


async def test_what_judges_say_of_their_code_is_in_the_key(tmp_path: Path) -> None:
    async def newer() -> str:
        return "sha256:abc"

    first = await run_evaluate_stage(make_context(tmp_path, ["Base"]))
    second = await run_evaluate_stage(replace(make_context(tmp_path, ["Base"]), judge_version=newer))
    assert second.found is None
    assert second.key != first.key


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
    asked = context.sampler.asked  # type: ignore[attr-defined]
    assert context.config.stage.context_tokens == 8
    assert {request.max_tokens for request in asked} == {32}, "at the evaluation's length, not the one that is trained"


@pytest.mark.parametrize("kept", [True, False])
async def test_evaluations_within_training_read_their_problems_once_unless_these_are_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    context = make_context(tmp_path, [], train=True)
    context.sampler.skill = 0.5  # type: ignore[attr-defined]
    sets = ProblemSets(context)
    if not kept:
        monkeypatch.setattr(problemsets, "KEPT_CHARACTERS", -1)
    first = await evaluate_weights(context, 3, sets)
    settings = context.config.stage.evaluate
    assert settings is not None
    Path(settings.datasets[0].uri).unlink()
    if kept:
        assert await evaluate_weights(context, 4, sets) == first
    else:
        with pytest.raises(BadConfig, match="does not exist"):
            await evaluate_weights(context, 4, sets)


def test_problems_that_are_read_each_time_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problemsets, "KEPT_CHARACTERS", -1)
    sets = ProblemSets(make_context(tmp_path, [], train=True))
    (first,) = sets.read()

    def away(*_: object, **__: object) -> Path:
        raise StorageUnavailable("no answer")

    monkeypatch.setattr(Sources, "dataset", away)
    (second,) = sets.read()
    assert second is not first
    assert second.input == first.input


async def test_a_judge_that_cannot_say_which_code_grades_ends_no_training_and_begins_no_evaluation_stage(
    tmp_path: Path,
) -> None:
    async def older() -> str:
        raise JudgeRefused("it does not say which code grades", field="judge")

    training = replace(make_context(tmp_path, [], train=True), judge_version=older)
    training.sampler.skill = 0.5  # type: ignore[attr-defined]
    assert 0.3 < (await evaluate_weights(training, 3))["eval/held/pass_at_1"] < 0.7
    stage = replace(make_context(tmp_path, ["Base"]), judge_version=older)
    with pytest.raises(JudgeRefused):
        await run_evaluate_stage(stage)
    assert stage.sampler.asked == []  # type: ignore[attr-defined]


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


async def test_rating_of_a_set_with_contests_is_a_figure_of_the_run(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base"], problems=1)
    write_contest(tmp_path / "cf")
    (tmp_path / "cf" / "problems.json").write_text(json.dumps(["1A"]))
    (tmp_path / "cf" / "ratings.json").write_text(json.dumps([1000, 2000]))
    evaluation = context.config.stage.evaluate
    assert evaluation is not None
    [source] = evaluation.datasets
    contested = source.model_copy(update={"contests": str(tmp_path / "cf")})
    model_folder(tmp_path / "sure", 1.0)

    def config_with(datasets: list[EvaluationDataset]) -> StageConfig:
        stage = context.config.stage
        changed = stage.model_copy(update={"evaluate": evaluation.model_copy(update={"datasets": datasets})})
        return context.config.model_copy(update={"stage": changed, "model": ModelSource(uri=str(tmp_path / "sure"))})

    figures = (await run_evaluate_stage(replace(context, config=config_with([contested])))).metrics
    assert (figures["eval/held/rating"], figures["eval/held/percentile"]) == (1881, 50)
    assert evaluate_gate(RATED, {"eval/held/rating": [figures["eval/held/rating"]]}).met
    [results] = list((tmp_path / "storage" / "eval").glob("*/results.md"))
    assert "Codeforces rating 1881" in results.read_text()
    assert "sample tests alone" in results.read_text(), "the caveat is beside the number"

    (tmp_path / "cf" / "problems.json").write_text(json.dumps(["1A", "1B"]))
    with pytest.raises(BadConfig, match="names 2 problems, held has 1"):
        await run_evaluate_stage(replace(context, config=config_with([contested])))
    (tmp_path / "cf" / "problems.json").unlink()
    with pytest.raises(BadConfig, match="none of its problems says which problem of which contest it is"):
        await run_evaluate_stage(replace(context, config=config_with([contested])))


async def test_what_a_template_puts_around_a_question_is_in_the_key(tmp_path: Path) -> None:
    class Greeting:
        chat_template = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1, *map(ord, text)]}

    first = await run_evaluate_stage(make_context(tmp_path, ["Base"]))
    second = await run_evaluate_stage(replace(make_context(tmp_path, ["Base"]), tokenizer=Greeting()))
    assert second.found is None
    assert second.key != first.key
