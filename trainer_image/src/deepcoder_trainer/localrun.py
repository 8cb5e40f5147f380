"""A whole run in one file: stages one after another on one machine, without Kubernetes.

The file is expanded into the same stage configs that the operator writes, so local runs and runs in a cluster take the
same path. What the operator would decide is decided here from storage alone: the next stage, the attempt's number, and
what a stage starts from. Running the same file again continues where it stopped. A changed recipe under the same
storage is refused, as in a cluster.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from deepcoder_contracts.base import DNSLabel, VersionedContract, sha256_digest
from deepcoder_contracts.curation import unprotected
from deepcoder_contracts.gate import Otherwise, PromoteWhen, recheck_gate
from deepcoder_contracts.manifest import BY_HAND, ParentRef, RunIdentity
from deepcoder_contracts.recipe import Recipe, StageRecipe
from deepcoder_contracts.stage import (
    DatasetSource,
    JudgeEndpoint,
    ModelSource,
    Provenance,
    StageConfig,
    StageResources,
    StageSettings,
    StageType,
    Storage,
)
from deepcoder_contracts.stage_rules import MEASURED_ONCE, TARGETS_OF_TRAIN, UNMEASURED, unknown_targets
from deepcoder_contracts.supported import Refusal


class LocalStage(StageSettings):
    """A stage as in a stage config. Its position is its place in the list."""

    index: int = Field(default=0, ge=0, le=63)
    """Position of the stage. Leave it out: it is set from the list."""

    recipe: StageRecipe | None = None
    """Settings of this stage that override the run's recipe."""


class LocalRun(VersionedContract):
    """The file that `run --config` reads for a run by hand."""

    kind: Annotated[str, StringConstraints(pattern="^LocalRun$")] = "LocalRun"
    """Always LocalRun."""

    name: DNSLabel
    """Name of the run."""

    model: ModelSource
    """Starting weights of the run."""

    dataset: DatasetSource | None = None
    """Training problems. Required if the run has a Train stage."""

    recipe: Recipe = Recipe()
    """GRPO+ settings."""

    stages: Annotated[list[LocalStage], Field(min_length=1, max_length=64)]
    """Stages of the run, in order."""

    storage: Storage
    """The run's own folder: file:///path or s3://bucket/prefix."""

    judge: JudgeEndpoint = JudgeEndpoint()
    """Where programs are judged. Default: the trainer's own judge on this machine."""

    parent: ParentRef | None = None
    """Checkpoint of an earlier run to start from."""

    @model_validator(mode="after")
    def _stages_are_told_apart(self) -> Self:
        names = [s.name for s in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages have the same name: give each its own ({', '.join(names)})")
        if any(s.type is StageType.TRAIN for s in self.stages) and self.dataset is None:
            raise ValueError("dataset is needed by a Train stage: set dataset.uri")
        if self.dataset is not None and self.dataset.curation is not None:
            sets = [(d.name, d.uri) for s in self.stages if s.evaluate for d in s.evaluate.datasets]
            if names := unprotected(self.dataset.curation, sets):
                raise ValueError(
                    f"stages evaluate {', '.join(names)}, which dataset.curation.against does not name: name each "
                    "there with its uri"
                )
        for stage in self.stages:
            if stage.recipe and stage.type is not StageType.TRAIN:
                raise ValueError(f"stages[{stage.name}].recipe: an Evaluate stage trains nothing: remove it")
            if stage.recipe and (misfit := stage.recipe.misfit(self.recipe)):
                raise ValueError(f"stages[{stage.name}].recipe: {misfit}")
        return self

    @property
    def identity(self) -> RunIdentity:
        """Identity of the run, derived from its folder: the same folder is the same run."""
        uid = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.storage.uri}#{self.name}")
        return RunIdentity(namespace=BY_HAND, name=self.name, uid=str(uid))

    @property
    def config_digest(self) -> str:
        """Digest of everything that determines the result.

        Storage, judge and number of processes are not part of it: a run may continue with others. A deterministic run
        may not, and says what it needs (see checkpoint/reader.py).
        """
        stages = [stage.model_copy(update={"resources": StageResources()}) for stage in self.stages]
        beside = {"judge": JudgeEndpoint(), "storage": Storage(uri="file:///"), "stages": stages}
        return sha256_digest(self.model_copy(update=beside).to_json())

    def recipe_of(self, stage: LocalStage) -> Recipe:
        """Return the run's recipe with the overrides of a stage."""
        return stage.recipe.over(self.recipe) if stage.recipe else self.recipe

    def stage_config(self, index: int, ordinal: int, parent: ParentRef | None) -> StageConfig:
        """Return the stage config of one attempt of a stage."""
        stage = self.stages[index]
        evaluation = stage.evaluate.context_tokens if stage.evaluate else None
        return StageConfig(
            run=self.identity,
            stage=StageSettings(**{**{n: v for n, v in stage if n != "recipe"}, "index": index}),
            earlier_stages=[s.name for s in self.stages[:index]],
            longest_context_tokens=max(stage.context_tokens, evaluation or 0),
            ordinal=ordinal,
            model=self.model,
            dataset=self.dataset,
            recipe=self.recipe_of(stage),
            parent=parent,
            storage=self.storage,
            judge=self.judge,
            provenance=Provenance(config_digest=self.config_digest),
        )


def late_refusals(run: LocalRun) -> Iterator[Refusal]:
    """Yield what a stage would refuse or ignore only when its turn comes, perhaps after days. In a cluster, the API
    server and the operator refuse the same."""
    earlier: list[str] = []
    for stage in run.stages:
        where, targets = f"stages[{stage.name}]", stage.evaluate.targets if stage.evaluate else []
        if stage.type is StageType.TRAIN:
            earlier.append(stage.name)
            if targets:
                yield Refusal(f"{where}.evaluate.targets", f"{where}: {TARGETS_OF_TRAIN}")
        elif wrong := unknown_targets(targets, earlier):
            yield Refusal(f"{where}.evaluate.targets", f"{where}.{wrong}")
        if stage.promote_when is not None:
            yield from _gate_refusals(stage, stage.promote_when, f"{where}.promoteWhen")


def _gate_refusals(stage: LocalStage, gate: PromoteWhen, where: str) -> Iterator[Refusal]:
    datasets = stage.evaluate.datasets if stage.evaluate else []
    measured = {f"eval/{d.name}/pass_at_1" for d in datasets} | {
        f"eval/{d.name}/rating" for d in datasets if d.contests
    }
    for condition in gate.all:
        evaluation = condition.metric.startswith("eval/")
        if evaluation and condition.metric not in measured:
            yield Refusal(where, f"{where} ({condition.metric}): {UNMEASURED}")
        elif stage.type is StageType.EVALUATE and not (evaluation and condition.window == 1):
            yield Refusal(where, f"{where} ({condition.metric}, window {condition.window}): {MEASURED_ONCE}")


def held_by_gate(stage: StageSettings, values: Mapping[str, float]) -> Otherwise | None:
    """Return Hold or Fail if a stage's unmet gate stops the run, or None if the run continues."""
    gate = stage.promote_when
    if gate is None or gate.otherwise is Otherwise.PROMOTE or recheck_gate(gate, values):
        return None
    return gate.otherwise
