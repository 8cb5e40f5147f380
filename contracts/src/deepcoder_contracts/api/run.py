"""The DeepCoderRun kind: printer columns, root-level rules, and schema details that the types cannot express."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from deepcoder_contracts.api.base import (
    LIST_MAP_KEYS,
    LIST_TYPE,
    SERVICE_NAME,
    VALIDATIONS,
    Rule,
    Spec,
    validations,
)
from deepcoder_contracts.api.run_spec import RunSpec
from deepcoder_contracts.api.run_status import RunStatus
from deepcoder_contracts.api.schema import Column, CustomResource
from deepcoder_contracts.api.stage import Stage

MAX_NAME_LENGTH = 36
"""`<run>-s<index>-a<ordinal>` then has at most 46 characters; KubeRay's limit for a RayJob is 47."""

MANAGER = "deepcoder.dev/operator"
"""Value of spec.managedBy that selects this operator. Leaving the field out does the same."""

FINALIZER = "deepcoder.dev/drain"
"""Finalizer that keeps a run until its attempt has drained and its artifacts are deleted."""


class Metadata(Spec):
    """The metadata fields that the operator reads."""

    model_config = ConfigDict(extra="ignore")

    namespace: str
    """Namespace of the object."""

    name: str
    """Name of the object."""

    uid: str
    """UID of the object."""

    generation: int = 1
    """Generation of the spec."""

    resource_version: str = ""
    """Version of the object."""

    creation_timestamp: str = ""
    """Time at which the object was created."""

    deletion_timestamp: str | None = None
    """Time at which deletion of the object was requested."""

    finalizers: list[str] = Field(default_factory=list)
    """Finalizers that block deletion."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels."""


class DeepCoderRun(Spec):
    """A run as the API server stores it."""

    model_config = ConfigDict(extra="ignore")

    metadata: Metadata
    """Identity and versions."""

    spec: RunSpec
    """Desired state."""

    status: RunStatus = RunStatus()
    """Observed state."""


_ADJUSTABLE = ("resources", "active_deadline_seconds", "pre_running_deadline_seconds", "stall_seconds")
"""Fields of a stage that do not affect its result: where it runs, and how long the operator waits."""


_NOW, _BEFORE = "self.spec.stages[s.index]", "oldSelf.spec.stages[s.index]"
"""CEL for the stage with status entry `s`, as requested and as stored."""


def _unchanged(*fields: str) -> str:
    """Return CEL which checks that these fields of the stage with status entry `s` are unchanged."""
    same = "(has({0}.{2}) ? has({1}.{2}) && {0}.{2} == {1}.{2} : !has({1}.{2}))"
    return " && ".join(same.format(_NOW, _BEFORE, to_camel(field)) for field in fields)


_STARTED_STAGES = (
    "!has(oldSelf.status) || !has(oldSelf.status.stages) || oldSelf.status.stages.all(s, !has(s.startTime) || "
    f"(s.index < size(self.spec.stages) && s.index < size(oldSelf.spec.stages) && ({_NOW} == {_BEFORE} || "
    f"{_unchanged(*(field for field in Stage.model_fields if field not in _ADJUSTABLE))})))"
)
"""Stages are compared as a whole first. The API server evaluates this on every status write, and the cost of each field
access grows with the number of properties in the schemas along its path."""
_STARTED_RESOURCES = (
    "!has(oldSelf.status) || !has(oldSelf.status.stages) || oldSelf.status.stages.all(s, !has(s.startTime) || "
    "s.index >= size(self.spec.stages) || s.index >= size(oldSelf.spec.stages) || "
    f"{_NOW}.resources == {_BEFORE}.resources || "
    "(!has(oldSelf.status.attempt) && !(has(self.spec.recipe) && has(self.spec.recipe.deterministic) && "
    "self.spec.recipe.deterministic)))"
)
"""Resources of a started stage may change only between attempts. The operator redacts the values of a live attempt's
Secrets from its output, and finds those Secrets through the spec, so the spec must match the pods. A deterministic run
is repeatable only with the number of processes that it began with. `resources` has a default, so it is always there."""

_RECIPE_RULES = validations(
    Rule(
        "!(has(self.order) && self.order == 'Window') || !has(self.maxOffPolicy) || self.maxOffPolicy >= 1",
        "order Window needs maxOffPolicy of at least 1: set maxOffPolicy: 1, or order: Strict",
        field_path=".maxOffPolicy",
    ),
    Rule(
        "!(has(self.deterministic) && self.deterministic) || !has(self.order) || self.order == 'Strict'",
        "deterministic needs order: Strict, because a window depends on completion order: set order: Strict, or "
        "deterministic: false",
        field_path=".order",
    ),
    Rule(
        "!(has(self.deterministic) && self.deterministic) || !(has(self.refill) && self.refill)",
        "deterministic samples groups in whole waves, which refill would break up: set refill: false, or "
        "deterministic: false",
        field_path=".refill",
    ),
    Rule(
        "(has(self.promptsPerStep) ? self.promptsPerStep : 128) % "
        "(has(self.optimizerSteps) ? self.optimizerSteps : 2) == 0",
        "promptsPerStep cannot be split into optimizerSteps equal mini-batches: make promptsPerStep a multiple of "
        "optimizerSteps",
        field_path=".promptsPerStep",
    ),
    Rule(
        "self == oldSelf",
        "recipe is immutable: make a new run, and continue from this one's checkpoint with spec.from",
    ),
)

_CURATE_RULES = validations(
    Rule(
        "has(self.passRates) || (self.filters.minPassRate == 0.0 && self.filters.maxPassRate == 1.0)",
        "filters.minPassRate and maxPassRate need pass rates: set curation.passRates to samples of an evaluation",
        field_path=".passRates",
    ),
)
_YEARS = Rule(
    "[has(self.since) ? self.since : timestamp('2000-01-01T00:00:00Z'), "
    "has(self.until) ? self.until : timestamp('2000-01-01T00:00:00Z')].all(day, day.getFullYear() >= 1)",
    "since and until are days of the calendar, which begins with the year 0001: set them to later dates",
)
"""The API server takes the year 0000 for a date. Python does not, and could not read the run."""
_FILTER_RULES = validations(
    _YEARS,
    Rule(
        "!has(self.since) || !has(self.until) || self.since < self.until",
        "filters.since is not before filters.until: set until to a later date",
        field_path=".until",
    ),
    Rule(
        "self.minPassRate < self.maxPassRate",
        "filters.minPassRate is not below filters.maxPassRate: lower it",
        field_path=".maxPassRate",
    ),
)
_WINDOW_RULES = validations(
    _YEARS,
    Rule(
        "!has(self.since) || !has(self.until) || self.since < self.until",
        "since of an evaluation dataset is not before its until: set until to a later date",
        field_path=".until",
    ),
)
_DAY = {"format": "date"}
"""The API server then refuses what is no day of the calendar, as the type does."""

_BY_METRIC: dict[str, Any] = {LIST_TYPE: "map", LIST_MAP_KEYS: ["metric"]}

RESOURCE = CustomResource(
    kind="DeepCoderRun",
    plural="deepcoderruns",
    short_name="dcr",
    description="A staged reinforcement-learning run: training at growing context lengths, evaluation, and every "
    "checkpoint with its lineage in S3.",
    spec=RunSpec,
    status=RunStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Stage", ".status.currentStage.name"),
        Column("Context", ".status.currentStage.contextTokens", "integer", description="Response limit in tokens."),
        Column("Step", ".status.progress.display"),
        Column("Reward", ".status.progress.reward", description="Mean reward of the last step."),
        Column("GPUs", ".status.gpus", "integer"),
        Column("Attempt", ".status.currentStage.ordinal", "integer"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Queue", ".spec.scheduling.queueName", wide=True),
        Column("Checkpoint", ".status.latestCheckpoint.uri", wide=True),
        Column("Message", '.status.conditions[?(@.type=="Progressing")].message', wide=True),
    ),
    rules=validations(
        Rule(
            f"size(self.metadata.name) <= {MAX_NAME_LENGTH}",
            f"metadata.name is longer than {MAX_NAME_LENGTH} characters, which would overflow the names of its "
            "RayJobs: shorten it",
        ),
        Rule(
            f"self.metadata.name.matches('{SERVICE_NAME}')",
            "metadata.name becomes part of RayJob names: use a DNS label (a-z, 0-9, '-') that starts with a letter",
        ),
        Rule(
            _STARTED_STAGES,
            "a stage that has started cannot be moved or removed, and only its resources and deadlines can change: "
            "append a new stage, or make a new run that continues with spec.from",
        ),
        Rule(
            _STARTED_RESOURCES,
            "resources of a stage that has started can change only between attempts, and not with "
            "recipe.deterministic: edit them while the run is Suspended, and resume it",
        ),
    ),
    without_defaults=frozenset({"Recipe"}),
    overrides={
        "spec.recipe": {VALIDATIONS: _RECIPE_RULES},
        "spec.dataset.curation": {VALIDATIONS: _CURATE_RULES},
        "spec.dataset.curation.filters": {VALIDATIONS: _FILTER_RULES},
        "spec.stages[].promoteWhen.all": _BY_METRIC,
        "spec.stages[].evaluate.targets": {LIST_TYPE: "set"},
        "spec.stages[].evaluate.datasets[]": {VALIDATIONS: _WINDOW_RULES},
        "spec.stages[].evaluate.datasets[].since": _DAY,
        "spec.stages[].evaluate.datasets[].until": _DAY,
    },
)
"""The kind, for the CRD generator."""
