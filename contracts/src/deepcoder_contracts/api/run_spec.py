"""DeepCoderRun.spec: a staged reinforcement-learning run, as a user requests it.

Where the trainer reads the same values, the spec uses the trainer's type, so each field is described once. CEL rules
stand next to the type that they check, and each message says how to fix the value. `domain/admission.py` checks what
CEL cannot see.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from deepcoder_contracts.api.base import (
    LIST_TYPE,
    NAMED_MAP,
    VALIDATIONS,
    LocalRef,
    Rule,
    Spec,
    immutable,
    validations,
)
from deepcoder_contracts.api.failure import FailurePolicy
from deepcoder_contracts.api.sandboxpool import PoolRef, SandboxPoolSpec
from deepcoder_contracts.api.stage import Stage
from deepcoder_contracts.base import Digest, DNSLabel
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import DatasetSource, HostedInterpreter, ModelSource

MAX_STAGES = 16

_NEW_RUN = "make a new run, and continue from this one's checkpoint with spec.from"


class Model(ModelSource):
    """Where the run reads its starting weights, in Hugging Face layout."""

    credentials_secret_ref: LocalRef | None = None
    """Secret with the key HF_TOKEN, for a private hub repository. The run reads models in S3 with the credentials of
    checkpoint.s3."""


class Dataset(DatasetSource):
    """Training problems. Either a finished set, in JSON Lines (optionally gzipped) or Parquet with the schema of the
    released data, or published sets to curate one from."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "has(self.uri) != has(self.curation)",
                    "give exactly one of dataset.uri (a finished problem set) and dataset.curation (published sets to "
                    "make one from)",
                    "FieldValueRequired",
                ),
                Rule(
                    "!has(self.sha256) || has(self.uri)",
                    "dataset.sha256 is for dataset.uri: give each of curation.inputs its own sha256",
                    field_path=".sha256",
                ),
            )
        }
    )

    curate: bool = False
    """Deprecated: has no effect. Use curation. The field remains so that runs stored by an earlier release stay
    valid."""


class FromCheckpoint(Spec):
    """A checkpoint of an earlier run that this run starts from."""

    uri: Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\s]+$", max_length=1024)]
    """Folder of the checkpoint: s3://bucket/…/<stage>/step-000120.a003."""

    digest: Digest | None = None
    """Expected digest of the checkpoint's MANIFEST.json. If it differs, the run stops before it requests any GPU."""


class Together(HostedInterpreter):
    """Together Code Interpreter, a hosted API. Programs and test inputs leave the cluster; expected outputs do not. Its
    limits differ from the judge's own (docs/judge.md), and it bills each program."""

    credentials_secret_ref: LocalRef
    """Secret with the key TOGETHER_API_KEY. Only the head pod mounts it, as a file."""


class Sandbox(Spec):
    """Where the run's programs are judged: an existing pool, a pool of the run's own, or a hosted API."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "[has(self.poolRef), has(self.template), has(self.together)].exists_one(given, given)",
                    "give exactly one of sandbox.poolRef (a SandboxPool of this namespace), sandbox.template (a pool "
                    "made for this run) and sandbox.together (Together Code Interpreter)",
                ),
                Rule(
                    "has(self.template) == has(oldSelf.template) && "
                    "(!has(self.template) || self.template == oldSelf.template)",
                    "sandbox.template is immutable, because the operator never updates a pool's spec: edit the "
                    "SandboxPool <run>-sandbox directly, or " + _NEW_RUN,
                    field_path=".template",
                ),
            )
        }
    )

    pool_ref: PoolRef | None = None
    """An existing SandboxPool in the same namespace. Several runs may share it."""

    template: SandboxPoolSpec | None = None
    """Spec of a pool that the operator creates for this run. The operator deletes the pool when the run ends, and while
    the run is suspended or held."""

    together: Together | None = None
    """A hosted API instead of a pool. It supports only scoring strict."""


class S3(Spec):
    """The S3 bucket where the run keeps all of its durable data."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "!has(self.serviceAccountName)",
                    "serviceAccountName is not supported yet: use credentialsSecretRef with AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY",
                    field_path=".serviceAccountName",
                ),
                Rule(
                    "has(self.credentialsSecretRef)",
                    "credentialsSecretRef is required: name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                    "FieldValueRequired",
                ),
                Rule(
                    "!has(self.prefix) || !self.prefix.contains('..')",
                    "prefix may not contain '..': give a plain path such as team/experiments",
                    field_path=".prefix",
                ),
            )
        }
    )

    bucket: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", min_length=3, max_length=63)
    ]
    """Name of the bucket. It must exist."""

    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./=-]*$", max_length=256)] = ""
    """Key prefix within the bucket. The run's folder is <prefix>/<namespace>/<run>-<uid8>."""

    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Region of the bucket. Default: us-east-1, which servers other than AWS accept."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=512)] | None = None
    """Endpoint URL of the S3 server. Leave it out for AWS."""

    credentials_secret_ref: LocalRef | None = None
    """Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and optionally AWS_SESSION_TOKEN and ca.crt."""

    service_account_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Service account with access to the bucket. Not supported yet."""


class Checkpoint(Spec):
    """Where and how often the run saves its state."""

    s3: Annotated[S3, Field(json_schema_extra=immutable("checkpoint.s3", _NEW_RUN))]
    """The bucket where the run stores checkpoints and results."""

    every_steps: int = Field(default=10, ge=1, le=1_000_000)
    """Number of steps between checkpoints. The last step of a stage always gets a checkpoint."""

    keep_last: int = Field(default=3, ge=1, le=10_000)
    """Number of newest checkpoints per stage that keep their payload. Manifests are always kept."""

    keep_every: int | None = Field(default=None, ge=1, le=1_000_000)
    """Also keep the payload of checkpoints at multiples of this step. Default: none."""

    drain_seconds: int = Field(default=300, ge=1, le=86_400)
    """Time, in seconds, that an attempt has to save its state after it is told to stop."""


class Scheduling(Spec):
    """How the run's pods are queued and scheduled."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "!self.gang",
                    "gang is not supported yet: set queueName, since Kueue admits all pods of an attempt together",
                    field_path=".gang",
                )
            )
        }
    )

    queue_name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] | None = (
        None
    )
    """Kueue LocalQueue in this namespace that admits the run's attempts."""

    priority_class_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """PriorityClass of the run's pods."""

    scheduler_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Scheduler that places the run's pods."""

    gang: bool = False
    """Schedule either all pods of an attempt or none. Not supported yet; use queueName."""


class Artifacts(StrEnum):
    """What happens to the run's folder in the bucket when the run is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Cleanup(Spec):
    """What happens to a finished run and to its data."""

    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=315_360_000)
    """Time, in seconds, after which a finished run is deleted. Default: never."""

    artifacts: Artifacts = Artifacts.RETAIN
    """What happens to the run's folder in the bucket when the run is deleted. Retain: it stays. Delete: it is deleted
    too."""


class RunSpec(Spec):
    """Desired state of the run."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "has(self.dataset) || !self.stages.exists(s, s.type == 'Train')",
                    "a Train stage needs problems: set dataset.uri",
                    "FieldValueRequired",
                ),
                Rule(
                    "self.stages.filter(s, s.type == 'Train').map(s, s.contextTokens).isSorted()",
                    "contextTokens must not decrease from one Train stage to the next: order the stages by context "
                    "length",
                    field_path=".stages",
                ),
                Rule(
                    "!self.stages.exists(s, s.type == 'Train' && s.placement == 'Colocated') || "
                    "(has(self.recipe) && has(self.recipe.maxOffPolicy) && self.recipe.maxOffPolicy == 0)",
                    "placement Colocated alternates sampling and training on the same GPUs, so they cannot overlap: "
                    "set recipe.maxOffPolicy: 0, or placement: Separate",
                    field_path=".stages",
                ),
                Rule(
                    "!self.stages.exists(s, s.type == 'Train' && s.placement == 'Colocated') || !has(self.recipe) || "
                    "!has(self.recipe.tensorParallel) || self.recipe.tensorParallel == 1",
                    "placement Colocated runs each engine on its learner's single GPU: "
                    "set recipe.tensorParallel: 1, or placement: Separate",
                    field_path=".stages",
                ),
                Rule(
                    "self.stages.all(s, !has(s.recipe) || (has(s.recipe.promptsPerStep) ? s.recipe.promptsPerStep : "
                    "has(self.recipe) && has(self.recipe.promptsPerStep) ? self.recipe.promptsPerStep : 128) % "
                    "(has(s.recipe.optimizerSteps) ? s.recipe.optimizerSteps : "
                    "has(self.recipe) && has(self.recipe.optimizerSteps) ? self.recipe.optimizerSteps : 2) == 0)",
                    "promptsPerStep of a stage's recipe cannot be split into optimizerSteps equal mini-batches (a "
                    "value that the stage omits comes from spec.recipe): make it a multiple of optimizerSteps",
                    field_path=".stages",
                ),
                Rule(
                    "!has(self.approvedStages) || self.approvedStages.all(a, self.stages.exists(s, s.name == a))",
                    "approvedStages names a stage that does not exist: use the names of spec.stages",
                    field_path=".approvedStages",
                ),
                Rule(
                    "has(self.dataset) == has(oldSelf.dataset) && has(self.from) == has(oldSelf.from) && "
                    "has(self.managedBy) == has(oldSelf.managedBy)",
                    "dataset, from and managedBy are immutable and cannot be added or removed: " + _NEW_RUN,
                ),
                Rule(
                    "!has(self.model.credentialsSecretRef) || self.model.uri.startsWith('hf://')",
                    "model.credentialsSecretRef is for hf:// models only; models in S3 use the credentials of "
                    "checkpoint.s3: remove it",
                    field_path=".model",
                ),
            )
        }
    )

    suspend: bool = False
    """If true, the live attempt saves its state within checkpoint.drainSeconds and its pods are removed. Set it back to
    false to resume."""

    managed_by: Annotated[
        str | None, Field(max_length=253, json_schema_extra=immutable("managedBy", "make a new run"))
    ] = None
    """Controller that manages this run. The operator ignores runs with a value other than deepcoder.dev/operator.
    Default: this operator."""

    model: Annotated[Model, Field(json_schema_extra=immutable("model", _NEW_RUN))]
    """Starting weights of the run."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Trainer image. Default: the operator's image (chart value images.trainer), recorded when the run is accepted."""

    image_pull_secrets: Annotated[list[LocalRef], Field(max_length=8, json_schema_extra=NAMED_MAP)] = []
    """Secrets for pulling the trainer image."""

    dataset: Annotated[Dataset | None, Field(json_schema_extra=immutable("dataset", _NEW_RUN))] = None
    """Training problems. Required if the run has a Train stage."""

    recipe: Annotated[Recipe, Field(json_schema_extra=immutable("recipe", _NEW_RUN))] = Recipe()
    """GRPO+ settings. A field that is left out takes its value from the published recipe, once, when the run starts."""

    from_: Annotated[
        FromCheckpoint | None, Field(alias="from", json_schema_extra=immutable("from", "make a new run"))
    ] = None
    """Checkpoint of an earlier run to start from, instead of the model's weights."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=MAX_STAGES, json_schema_extra=NAMED_MAP)]
    """Stages of the run, in order. Of a stage that has started only deadlines can change, and between attempts its
    resources. Later stages can change, and new ones can be appended."""

    approved_stages: Annotated[list[DNSLabel], Field(max_length=MAX_STAGES, json_schema_extra={LIST_TYPE: "set"})] = []
    """Names of held stages that the run may pass. Appending a name releases that stage."""

    sandbox: Sandbox
    """Where the run's programs are judged. A change takes effect in the next attempt."""

    checkpoint: Checkpoint
    """Where and how often the run saves its state."""

    failure_policy: FailurePolicy = FailurePolicy()
    """What the operator does when an attempt fails."""

    scheduling: Scheduling = Scheduling()
    """How the run's pods are queued and scheduled."""

    cleanup: Cleanup = Cleanup()
    """What happens to a finished run and to its data."""
