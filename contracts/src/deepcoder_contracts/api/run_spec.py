"""DeepCoderRun.spec: a staged reinforcement-learning run, as a user asks for it.

Types of the contracts are used as they are wherever the trainer reads the same thing, so that one sentence describes
one field. CEL rules stand beside the type they hold for and say how to mend what they refuse; `domain/admission.py`
checks what CEL cannot see.
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
from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_contracts.api.stage import Stage
from deepcoder_contracts.base import Digest, DNSLabel
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import DatasetSource, HostedInterpreter, ModelSource

MAX_STAGES = 16

_NEW_RUN = "make a new run, and continue from this one's checkpoint with spec.from"


class Model(ModelSource):
    """Where the starting weights come from, in Hugging Face layout."""

    credentials_secret_ref: LocalRef | None = None
    """Secret with HF_TOKEN, for a private repository of a hub. Models in S3 are read with the credentials of
    checkpoint.s3."""


class Dataset(DatasetSource):
    """Training problems: JSON Lines (gzip allowed) or Parquet, in the schema of the released data, or published sets
    to make them from."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "has(self.uri) != has(self.curation)",
                    "give exactly one of dataset.uri (problems that are ready) and dataset.curation (published sets to "
                    "make them from)",
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
    """Has no effect: kept for runs that an earlier release stored, which wrote false. Instead: curation."""


class FromCheckpoint(Spec):
    """A checkpoint of an earlier run to start from."""

    uri: Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\s]+$", max_length=1024)]
    """Folder of the checkpoint: s3://bucket/…/<stage>/step-000120.a003."""

    digest: Digest | None = None
    """Digest of its MANIFEST.json; a difference stops the run before any GPU is asked for."""


class Together(HostedInterpreter):
    """Together Code Interpreter, a hosted API: programs and tests' inputs leave the cluster, expected outputs do not.
    Its limits are not the judge's own (docs/judge.md), and it is billed for each program."""

    credentials_secret_ref: LocalRef
    """Secret with TOGETHER_API_KEY. The head pod alone gets it, as a file."""


class Sandbox(Spec):
    """Judges of this run: a pool that exists, one of its own, or a hosted API."""

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
                    "sandbox.template is immutable, since the operator writes no pool's spec: edit the SandboxPool "
                    "<run>-sandbox while the run goes on, or " + _NEW_RUN,
                    field_path=".template",
                ),
            )
        }
    )

    pool_ref: LocalRef | None = None
    """A SandboxPool of the same namespace, possibly shared with other runs."""

    template: SandboxPoolSpec | None = None
    """A pool made for this run. It goes at the run's end, and while the run is suspended or held."""

    together: Together | None = None
    """A hosted API in place of a pool. It knows scoring strict only."""


class S3(Spec):
    """The bucket that holds everything durable."""

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
    """Bucket; it must exist."""

    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./=-]*$", max_length=256)] = ""
    """Key prefix within the bucket; the run's folder is <prefix>/<namespace>/<run>-<uid8>."""

    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Region of the bucket. Default: us-east-1, which servers other than AWS take for any."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=512)] | None = None
    """Endpoint URL of a server other than AWS."""

    credentials_secret_ref: LocalRef | None = None
    """Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and optionally AWS_SESSION_TOKEN and ca.crt."""

    service_account_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Service account with access to the bucket. Not supported yet."""


class Checkpoint(Spec):
    """Where and how often the run's state is saved."""

    s3: Annotated[S3, Field(json_schema_extra=immutable("checkpoint.s3", _NEW_RUN))]
    """The bucket."""

    every_steps: int = Field(default=10, ge=1, le=1_000_000)
    """Steps between checkpoints; the last step of a stage always gets one."""

    keep_last: int = Field(default=3, ge=1, le=10_000)
    """Newest checkpoints of a stage whose payload is kept."""

    keep_every: int | None = Field(default=None, ge=1, le=1_000_000)
    """Checkpoints at multiples of this step keep their payload too."""

    drain_seconds: int = Field(default=300, ge=1, le=86_400)
    """Time an attempt has to save after it is asked to stop, in seconds."""


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
    """Kueue LocalQueue of this namespace."""

    priority_class_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """PriorityClass of the run's pods."""

    scheduler_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Scheduler of the run's pods."""

    gang: bool = False
    """Schedule all pods of an attempt together or none. Not supported yet."""


class Artifacts(StrEnum):
    """What becomes of the run's folder in the bucket when the run is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Cleanup(Spec):
    """What happens after the run."""

    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=315_360_000)
    """Delete the run this many seconds after it finished. Default: never."""

    artifacts: Artifacts = Artifacts.RETAIN
    """Retain, or Delete the run's folder in the bucket when the run is deleted."""


class RunSpec(Spec):
    """What the run is to do."""

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
                    "contextTokens may not fall from one Train stage to the next: order the stages by context length",
                    field_path=".stages",
                ),
                Rule(
                    "!self.stages.exists(s, s.type == 'Train' && s.placement == 'Colocated') || "
                    "(has(self.recipe) && has(self.recipe.maxOffPolicy) && self.recipe.maxOffPolicy == 0)",
                    "placement Colocated samples and trains in turns, which cannot overlap: "
                    "set recipe.maxOffPolicy: 0, or placement: Separate",
                    field_path=".stages",
                ),
                Rule(
                    "!self.stages.exists(s, s.type == 'Train' && s.placement == 'Colocated') || !has(self.recipe) || "
                    "!has(self.recipe.tensorParallel) || self.recipe.tensorParallel == 1",
                    "placement Colocated gives each engine the one GPU of its learner: "
                    "set recipe.tensorParallel: 1, or placement: Separate",
                    field_path=".stages",
                ),
                Rule(
                    "self.stages.all(s, !has(s.recipe) || (has(s.recipe.promptsPerStep) ? s.recipe.promptsPerStep : "
                    "has(self.recipe) && has(self.recipe.promptsPerStep) ? self.recipe.promptsPerStep : 128) % "
                    "(has(s.recipe.optimizerSteps) ? s.recipe.optimizerSteps : "
                    "has(self.recipe) && has(self.recipe.optimizerSteps) ? self.recipe.optimizerSteps : 2) == 0)",
                    "promptsPerStep of a stage's recipe cannot be split into optimizerSteps equal mini-batches (what "
                    "the stage leaves out is spec.recipe's): make it a multiple",
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
                    "dataset, from and managedBy are immutable, so they can be neither added nor removed: " + _NEW_RUN,
                ),
                Rule(
                    "!has(self.model.credentialsSecretRef) || self.model.uri.startsWith('hf://')",
                    "model.credentialsSecretRef is for hf:// models; models in S3 use checkpoint.s3's: remove it",
                    field_path=".model",
                ),
            )
        }
    )

    suspend: bool = False
    """True drains the live attempt (it saves, bounded by checkpoint.drainSeconds) and frees its pods; false resumes."""

    managed_by: Annotated[
        str | None, Field(max_length=253, json_schema_extra=immutable("managedBy", "make a new run"))
    ] = None
    """Controller of this run; one with another value than deepcoder.dev/operator is left alone."""

    model: Annotated[Model, Field(json_schema_extra=immutable("model", _NEW_RUN))]
    """Starting weights."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Trainer image. Default: the operator's (chart value images.trainer), recorded when the run is accepted."""

    image_pull_secrets: Annotated[list[LocalRef], Field(max_length=8, json_schema_extra=NAMED_MAP)] = []
    """Secrets to pull the image with."""

    dataset: Annotated[Dataset | None, Field(json_schema_extra=immutable("dataset", _NEW_RUN))] = None
    """Training problems; needed by Train stages."""

    recipe: Annotated[Recipe, Field(json_schema_extra=immutable("recipe", _NEW_RUN))] = Recipe()
    """GRPO+ settings. What is left out takes the value of the published recipe, resolved once when the run begins."""

    from_: Annotated[
        FromCheckpoint | None, Field(alias="from", json_schema_extra=immutable("from", "make a new run"))
    ] = None
    """Checkpoint of an earlier run to start from, in place of the model's weights."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=MAX_STAGES, json_schema_extra=NAMED_MAP)]
    """Stages, in order. Stages that have started cannot be changed; later ones can, and more can be appended."""

    approved_stages: Annotated[list[DNSLabel], Field(max_length=MAX_STAGES, json_schema_extra={LIST_TYPE: "set"})] = []
    """Held stages that may be passed. Appending a name releases the stage."""

    sandbox: Sandbox
    """Judges."""

    checkpoint: Checkpoint
    """Where and how often state is saved."""

    failure_policy: FailurePolicy = FailurePolicy()
    """How failures are met."""

    scheduling: Scheduling = Scheduling()
    """How pods are queued and scheduled."""

    cleanup: Cleanup = Cleanup()
    """What happens after the run."""
