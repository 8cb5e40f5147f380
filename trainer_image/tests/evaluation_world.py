"""An evaluation with a scripted sampler, for tests: a model is a number, the share of problems that it solves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.layout import checkpoint_dir, evaluation_dir, export_dir
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, ParentRef, RunIdentity
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import (
    Evaluation,
    EvaluationDataset,
    ModelSource,
    Provenance,
    StageConfig,
    StageResources,
    StageSettings,
    StageType,
    Storage,
)
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import upload_files
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.results import EvaluationResults
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Outcome, Problem, VersionSpan, WeightRefs

RUN = RunIdentity(namespace="local", name="r", uid="00000000-0000-0000-0000-000000000001")
DIGEST = "sha256:" + "0" * 64


class Tokenizer:
    """One token a character."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


@dataclass
class ScriptedSampler:
    """Answers `right` as often as the model it was given says."""

    skill: float = -1.0
    asked: list[GenerationRequest] = field(default_factory=list)
    pushed: int = 0
    ends_after: int | None = None
    """Requests after which it is lost."""

    async def generate(self, request: GenerationRequest) -> Generation:
        assert self.skill >= 0, "weights were never pushed"
        if self.ends_after is not None and len(self.asked) >= self.ends_after:
            raise SamplerLost("the engine is gone")
        self.asked.append(request)
        assert request.seed is not None
        right = (request.seed % 1000) / 1000 < self.skill
        return Generation(
            output_ids=np.zeros(4, np.int32),
            logprobs=np.zeros(4, np.float32),
            finish=Finish.STOP if right else Finish.LENGTH,
            text="right" if right else "wrong",
            versions=(VersionSpan(1, 0, 4),),
        )

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        raise AssertionError("pushed by the context")

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Context(EvaluationContext):
    """Reads a model's skill instead of its weights."""

    async def push(self, directory: Path, version: int) -> None:
        self.sampler.skill = json.loads((directory / "config.json").read_text())["skill"]  # type: ignore[attr-defined]
        self.sampler.pushed += 1  # type: ignore[attr-defined]


async def judge(problem: Problem, response: str, key: str) -> Outcome:
    return Outcome(float(response == "right"), "passed" if response == "right" else "wrong_answer", 0.01)


async def broken_judge(problem: Problem, response: str, key: str) -> Outcome:
    return Outcome(None, "error", 0.01, attempts=3)


def model_folder(path: Path, skill: float) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"skill": skill}))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def export(store: ObjectStore, folder: Path, stage: str, step: int) -> None:
    """Commit a model's export, and the checkpoint that it was made from."""
    place = checkpoint_dir(stage, step, 1)
    checkpoint = _manifest(ManifestKind.CHECKPOINT, stage, step, [], None).to_json()
    store.put_bytes(f"{place}/MANIFEST.json", checkpoint, if_absent=True)
    of = ParentRef(uri=f"{store.uri}/{place}", digest=sha256_digest(checkpoint))
    prefix = export_dir(stage, step, 1)
    files = upload_files(store, prefix, folder, sorted(folder.iterdir()))
    manifest = _manifest(ManifestKind.EXPORT, stage, step, files, of)
    store.put_bytes(f"{prefix}/MANIFEST.json", manifest.to_json(), if_absent=True)


def _manifest(kind: ManifestKind, stage: str, step: int, files: list[FileEntry], of: ParentRef | None) -> Manifest:
    return Manifest(
        kind=kind,
        run=RUN,
        stage=stage,
        stage_index=0,
        ordinal=1,
        step=step,
        total_steps=step,
        parent=of,
        config_digest=DIGEST,
        code_digest=DIGEST,
        seed=0,
        world_size=1,
        created_at=datetime.now(UTC),
        files=files,
    )


def make_context(
    tmp_path: Path,
    targets: list[str],
    reward: Any = judge,
    *,
    train: bool = False,
    problems: int = 40,
    samples: int = 4,
) -> Context:
    root = tmp_path / "storage"
    root.mkdir(parents=True, exist_ok=True)
    data = tmp_path / "held.jsonl"
    if not data.exists():
        rows = [
            {"id": f"p{n}", "prompt": f"problem {n}", "tests": [{"input": "", "output": ""}]} for n in range(problems)
        ]
        data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    base = tmp_path / "base"
    if not base.exists():
        model_folder(base, 0.2)
    evaluation = Evaluation(
        datasets=[EvaluationDataset(name="held", uri=str(data))],
        context_tokens=32,
        samples_per_problem=samples,
        targets=targets,
    )
    config = StageConfig(
        run=RUN,
        stage=StageSettings(
            name="short" if train else "exam",
            index=0 if train else 2,
            type=StageType.TRAIN if train else StageType.EVALUATE,
            context_tokens=8,
            max_steps=5 if train else 0,
            resources=StageResources(samplers=1, learners=1 if train else 0),
            evaluate=evaluation,
        ),
        earlier_stages=[] if train else ["short", "long"],
        longest_context_tokens=32,
        ordinal=1,
        model=ModelSource(uri=str(base)),
        dataset={"uri": str(data)} if train else None,
        recipe=Recipe(seed=7, max_prompt_tokens=64),
        storage=Storage(uri=f"file://{root}"),
        provenance=Provenance(config_digest=DIGEST),
    )
    workdir = tmp_path / "work"
    workdir.mkdir(exist_ok=True)
    return Context(
        config=config,
        sampler=ScriptedSampler(),
        reward=reward,
        store=open_storage(f"file://{root}"),
        sources=Sources(cache=tmp_path / "cache"),
        tokenizer=Tokenizer(),
        workdir=workdir,
        dtype="float32",
    )


def results_of(context: Context) -> EvaluationResults:
    (key,) = {o.key.split("/")[1] for o in context.store.list("eval/")}
    return EvaluationResults.from_json(context.store.get_bytes(f"{evaluation_dir(key)}/results.json"))
