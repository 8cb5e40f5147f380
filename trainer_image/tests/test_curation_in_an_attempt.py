"""An attempt that makes its own set: before anything is started, once, and without a verdict lost to a stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from attempt_world import World

from deepcoder_contracts.curation import CurationManifest, CurationSpec
from deepcoder_contracts.judge import JudgeResponse, TestVerdict, Verdict
from deepcoder_contracts.manifest import Manifest
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import DatasetSource, StageConfig
from deepcoder_trainer.judge.backend import Judgement
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.modelconfig import model_files
from deepcoder_trainer.running import attempt
from deepcoder_trainer.stopping import Stop
from deepcoder_trainer.telemetry.progress import Progress


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    return lambda steps=3, every=1: World(tmp_path, monkeypatch, steps, every)


class Passing:
    """A judge that passes every program; after `most` of them it says nothing more."""

    errors, capacity = 0, 2

    def __init__(self, most: int = 10**9) -> None:
        self.retries: dict[str, int] = {}
        self.most, self.asked = most, 0

    async def judge(self, submission: Submission) -> Judgement:
        self.asked += 1
        if self.asked > self.most:
            await asyncio.Event().wait()
        verdict = TestVerdict(verdict=Verdict.PASSED, seconds=0.1)
        return Judgement(JudgeResponse(id="x", passed=True, verdicts=[verdict], seconds=0.1, worker="w"), 1)

    async def version(self) -> str | None:
        return "sha256:1"

    async def run(self) -> None:
        await asyncio.Event().wait()


def curating(w: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Passing) -> list[str]:
    """The attempt makes its own set; the phases that it tells of."""
    rows = [
        {
            "id": f"p{i}",
            "prompt": " ".join(f"{word}{i}" for word in ("say", "it", "once", "more", "to", "me")),
            "tests": [{"input": "", "output": f"{i}"}] * 5,
            "solution": f"print({i})",
        }
        for i in range(6)
    ]
    published = tmp_path / "published.jsonl"
    published.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = CurationSpec.model_validate({"inputs": [{"name": "numbers", "uri": str(published)}]})
    w.config = w.config.model_copy(update={"dataset": DatasetSource(curation=spec)})

    @contextlib.asynccontextmanager
    async def connected(config: StageConfig, local: object) -> AsyncIterator[Passing]:
        yield judge

    def tokenize(prompt: str | list[str], **_: object) -> dict[str, Any]:
        return {"input_ids": [1, 2] if isinstance(prompt, str) else [[1, 2]] * len(prompt)}

    phases: list[str] = []
    told = Progress.on_phase

    def on_phase(self: Progress, phase: TrainerPhase) -> None:
        phases.append(phase.value)
        told(self, phase)

    monkeypatch.setattr(Progress, "on_phase", on_phase)
    monkeypatch.setattr(attempt, "connect_judge", connected)
    monkeypatch.setattr(attempt, "load_tokenizer", lambda folder: tokenize)
    return phases


async def test_an_attempt_makes_its_own_set_before_it_trains_on_it_and_the_next_finds_it(
    world: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, judge = world(steps=1), Passing()
    phases = curating(w, tmp_path, monkeypatch, judge)
    record = await w.run()
    assert (record.code, record.reason) == (0, "Completed")
    assert judge.asked == 6, "also where the run's reward asks no judge"
    assert phases[:3] == ["Curating", "Starting", "Training"]
    [path] = w.store.glob("curation/*/MANIFEST.json")
    curation = CurationManifest.from_json(path.read_bytes())
    [checkpoint] = w.store.glob("s/step-*/MANIFEST.json")
    stored = Manifest.from_json(checkpoint.read_bytes())
    assert stored.dataset_digest == curation.dataset_digest
    assert "config.json" in stored.model_files
    assert stored.model_files == model_files(Path(w.config.model.uri.removeprefix("file://")))

    (tmp_path / "published.jsonl").unlink()
    again = w.config.stage.model_copy(update={"name": "longer", "index": 1})
    w.config = w.config.model_copy(update={"stage": again})
    assert (await w.run()).code == 0
    assert judge.asked == 6
    [checkpoint] = w.store.glob("longer/step-*/MANIFEST.json")
    assert Manifest.from_json(checkpoint.read_bytes()).dataset_digest == curation.dataset_digest


async def test_a_stop_while_the_set_is_made_costs_no_verdict(
    world: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, judge = world(steps=1), Passing(most=3)
    curating(w, tmp_path, monkeypatch, judge)
    running = asyncio.create_task(w.run())

    def verdicts() -> int:
        return sum(len(page.read_text().splitlines()) for page in w.store.glob("curation/journal/*"))

    async with asyncio.timeout(30):
        while verdicts() < 3:
            await asyncio.sleep(0.02)
    w.stop.request(5, "Drained")
    record = await running
    assert (record.code, record.reason) == (75, "Drained")
    assert list(w.store.glob("curation/*/MANIFEST.json")) == []
    judge.most = 10**9
    asked = judge.asked
    w.stop = Stop()
    w.config = w.config.model_copy(update={"ordinal": 2})
    assert (await w.run()).code == 0
    assert judge.asked - asked == 3, "those that had a verdict are not asked for again"


async def test_a_set_that_nothing_is_left_of_is_a_wrong_configuration(
    world: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(steps=1)
    curating(w, tmp_path, monkeypatch, Passing())
    (tmp_path / "published.jsonl").write_text(
        json.dumps({"id": "p", "prompt": "say", "tests": [{"input": "", "output": "1"}]}) + "\n"
    )
    record = await w.run()
    assert (record.code, record.reason, record.field) == (64, "BadConfig", "dataset")
    assert "no problem is left: the filters dropped all 1" in record.message
