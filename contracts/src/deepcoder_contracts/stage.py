"""The stage config: everything that one attempt at one stage needs to know, from the operator or from a researcher.

`deepcoder-trainer run --config FILE` reads it. The operator writes one for each (stage, ordinal). A researcher's file
may hold a whole run (the trainer's `LocalRun`), which the trainer expands into stage configs. There is no resume flag:
the trainer itself finds the newest complete manifest below `storage`, and falls back to `parent`, then to the model.
"""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from deepcoder_contracts.base import Contract, Digest, DNSLabel, VersionedContract, later
from deepcoder_contracts.curation import CurationSpec
from deepcoder_contracts.gate import PromoteWhen
from deepcoder_contracts.manifest import ParentRef, RunIdentity
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.rope import RopeScaling
from deepcoder_contracts.uris import SourceURI

StorageURI = Annotated[
    str, StringConstraints(pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?|file:///[^\s]*)$")
]
"""`s3://bucket/prefix` or `file:///path`."""


class StageType(StrEnum):
    """Train: update weights. Evaluate: measure checkpoints, at a context length of its own."""

    TRAIN = "Train"
    EVALUATE = "Evaluate"


class Placement(StrEnum):
    """Separate: samplers and learners have their own devices. Colocated: they take turns on the same devices."""

    SEPARATE = "Separate"
    COLOCATED = "Colocated"


class OptimizerState(StrEnum):
    """What a Train stage does with its parent's optimizer state."""

    RESET = "Reset"
    CARRY = "Carry"


class ModelSource(Contract):
    """Where to read the starting weights, in Hugging Face layout (config, safetensors, tokenizer)."""

    uri: SourceURI
    """Location of the model: hf://org/name, s3://bucket/prefix, file:///path, or a path in the image."""

    revision: str | None = None
    """Revision of a hub repository, such as a commit."""


class DatasetSource(Contract):
    """Training problems: a finished set, in JSON Lines (optionally gzipped) or Parquet, or published sets to curate one
    from."""

    uri: SourceURI | None = None
    """Location of a finished problem set: hf://org/name, s3://bucket/key, file:///path, or a path in the image. Set
    either uri or curation."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of the file at uri. If it differs, the run stops before any work."""

    curation: CurationSpec | None = None
    """Published sets from which the run makes the problem set, once, before training. Set either uri or curation."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.uri is None) == (self.curation is None):
            raise ValueError(
                "give exactly one of dataset.uri (a finished problem set) and dataset.curation (published sets to "
                "make one from)"
            )
        if self.sha256 is not None and self.uri is None:
            raise ValueError("dataset.sha256 is for dataset.uri: give each of curation.inputs its own sha256")
        return self


def _written(day: Any) -> Any:
    return day.isoformat() if isinstance(day, date) else day


Day = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), BeforeValidator(_written)]
"""A day, as YYYY-MM-DD. Unquoted YAML reads it as a date."""


class Extraction(StrEnum):
    """LastBlock: the last closed fenced block. LiveCodeBench: the text between the last two fences."""

    LAST_BLOCK = "LastBlock"
    LIVECODEBENCH = "LiveCodeBench"


class EvaluationDataset(Contract):
    """A named set of problems to evaluate on."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
    """Name of the set in metrics and gates: eval/<name>/pass_at_1, eval/<name>/rating."""

    uri: SourceURI
    """Location of the problems, in a format of training problems or in the layout of a published benchmark."""

    since: Day | None = None
    """First day, as YYYY-MM-DD. Earlier problems are left out, and every problem needs a date."""

    until: Day | None = None
    """End of the period, as YYYY-MM-DD. Problems from this day on are left out, and every problem needs a date."""

    extraction: Extraction = later(Extraction.LAST_BLOCK)
    """How the program is extracted from a response. LastBlock: the last closed fenced block. LiveCodeBench: the text
    between the last two fences."""

    contests: SourceURI | None = None
    """Codeforces only: folder of standings and ratings, from which eval/<name>/rating is computed."""

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        for name, day in (("since", self.since), ("until", self.until)):
            try:
                date.fromisoformat(day or "2000-01-01")
            except ValueError:
                raise ValueError(f"dataset {self.name}: {name} {day} is not a day of the calendar") from None
        if self.since and self.until and self.since >= self.until:
            raise ValueError(f"dataset {self.name}: since {self.since} is not before until {self.until}")
        return self


class Evaluation(Contract):
    """What to evaluate, and at which context length."""

    datasets: Annotated[list[EvaluationDataset], Field(min_length=1, max_length=16)]
    """Problem sets to evaluate on. Each set gets its own result."""

    context_tokens: int | None = Field(default=None, ge=1)
    """Response limit, in tokens. Default: the stage's contextTokens."""

    every_steps: int | None = Field(default=None, ge=1)
    """Train stages: steps between evaluations. The stage also evaluates at its end. Default: only at the end."""

    samples_per_problem: int = Field(default=1, ge=1, le=1024)
    """Number of responses sampled for each problem. pass@1 is the mean over them."""

    targets: Annotated[
        list[Annotated[str, StringConstraints(pattern=r"^(Base|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")]], Field(max_length=32)
    ] = []
    """Evaluate stages: what to measure. `Base` is the starting model; other entries name earlier Train stages. All are
    measured on the same problems and seeds, so they can be compared in pairs. Default: the newest Train stage."""


class StageResources(Contract):
    """Number of processes of an attempt. Their devices come with the pods."""

    samplers: int = Field(default=1, ge=1, le=4096)
    """Number of vLLM engines."""

    learners: int = Field(default=1, ge=0, le=4096)
    """Number of learner ranks. It may be 0 only in an Evaluate stage."""

    accelerators: bool = False
    """Whether samplers and learners run on GPUs. If false, they run on CPUs."""


class StageSettings(Contract):
    """Settings of one stage of a run."""

    name: DNSLabel
    """Name of the stage, unique in the run."""

    index: int = Field(ge=0, le=63)
    """Position of the stage in the run, from 0."""

    type: StageType
    """Kind of stage. Train: update weights. Evaluate: measure checkpoints, at a context length of its own."""

    context_tokens: int = Field(ge=1, le=1_048_576)
    """Longest response, in tokens, not counting the prompt (recipe.maxPromptTokens)."""

    rope: RopeScaling | None = None
    """Scaling of rotary positions for all sampling and training of this stage. Default: the model's own."""

    max_steps: int = Field(default=0, ge=0)
    """Number of training steps. It may be 0 only in an Evaluate stage."""

    optimizer: OptimizerState = OptimizerState.CARRY
    """Optimizer state at the start of the stage. Carry: continue from the previous stage. Reset: start afresh."""

    placement: Placement = Placement.SEPARATE
    """Where samplers and learners run. Separate: on their own devices. Colocated: in turns on the same devices."""

    resources: StageResources = StageResources()
    """Number of processes of the attempt."""

    evaluate: Evaluation | None = None
    """Evaluations during a Train stage, or what an Evaluate stage measures."""

    promote_when: PromoteWhen | None = None
    """Gate that may end the stage before maxSteps."""

    stall_seconds: int = Field(default=1800, ge=10)
    """Longest time, in seconds, without progress before the attempt counts as stalled."""

    @property
    def colocated(self) -> bool:
        """Whether a sampler and a learner take turns on each device."""
        return self.placement is Placement.COLOCATED and self.type is StageType.TRAIN

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.type is StageType.TRAIN and self.max_steps < 1:
            raise ValueError(f"stage {self.name}: a Train stage needs maxSteps of at least 1")
        if self.type is StageType.TRAIN and self.resources.learners < 1:
            raise ValueError(f"stage {self.name}: a Train stage needs at least one learner (resources.learners)")
        if self.type is StageType.EVALUATE and self.evaluate is None:
            raise ValueError(f"stage {self.name}: an Evaluate stage needs evaluate.datasets")
        if self.colocated and self.resources.samplers != self.resources.learners:
            raise ValueError(
                f"stage {self.name}: placement Colocated runs one sampler on each learner's device, but there are "
                f"{self.resources.learners} learners and {self.resources.samplers} samplers: set resources.samplers "
                "and resources.learners to the same number"
            )
        return self


class Storage(Contract):
    """Where the run keeps checkpoints and results. Credentials come only from AWS_* environment variables."""

    uri: StorageURI
    """Root folder of the run: s3://bucket/prefix/namespace/run-uid8 or file:///path."""

    region: str | None = None
    """S3 region."""

    endpoint: str | None = None
    """Endpoint URL of an S3 server other than AWS."""

    every_steps: int = Field(default=10, ge=1)
    """Number of steps between checkpoints. The last step of a stage always gets a checkpoint."""

    keep_last: int = Field(default=3, ge=1)
    """Number of newest checkpoints per stage that keep their payload. Manifests are always kept."""

    keep_every: int | None = Field(default=None, ge=1)
    """Also keep the payload of checkpoints at multiples of this step. Default: none."""

    drain_seconds: int = Field(default=300, ge=1)
    """Time, in seconds, that the trainer has to save its state after it is told to stop."""


class JudgeBackend(StrEnum):
    """Pool: HTTP servers behind a Service. Local: the trainer's own server on a Unix socket. Together: Together Code
    Interpreter, a hosted API."""

    POOL = "Pool"
    LOCAL = "Local"
    TOGETHER = "Together"


class HostedInterpreter(Contract):
    """Together Code Interpreter's API."""

    endpoint: Annotated[
        str,
        StringConstraints(
            pattern=r"^(https://[^\s/?#@]+|http://(127\.0\.0\.1|localhost)(:[0-9]+)?)(/[^\s?#]*)?$", max_length=512
        ),
    ] = "https://api.together.ai/v1"
    """Base URL of the API, or of a proxy. It must use https, so that the key is never sent in the clear, except for an
    address of this machine."""

    concurrency: int = Field(default=64, ge=1, le=4096)
    """Number of programs that run there at once, each in its own session."""


class TogetherEndpoint(HostedInterpreter):
    """How the trainer reaches Together Code Interpreter."""

    key_file: str
    """File with the API key. The trainer reads it again when it changes."""


class JudgeEndpoint(Contract):
    """How the trainer reaches judges."""

    backend: JudgeBackend = JudgeBackend.LOCAL
    """Kind of judge. Pool: HTTP servers behind a Service. Local: the trainer's own server. Together: a hosted API."""

    host: str | None = None
    """Pool: name of the headless Service. Every address behind it is a judge."""

    port: int = Field(default=8080, ge=1, le=65535)
    """Pool: port of each judge."""

    token_file: str | None = None
    """Pool: file with the bearer token."""

    workers: int | None = Field(default=None, ge=1)
    """Local: number of programs judged at once. Default: the number of CPUs."""

    together: TogetherEndpoint | None = None
    """Together: the API and its key."""

    @model_validator(mode="after")
    def _has_what_its_back_end_needs(self) -> Self:
        if self.backend is JudgeBackend.POOL and not (self.host and self.token_file):
            raise ValueError("judge.backend Pool needs judge.host and judge.tokenFile")
        if (self.backend is JudgeBackend.TOGETHER) != (self.together is not None):
            raise ValueError(
                "judge.together must be set for judge.backend Together, and only then: give judge.together.keyFile, or "
                "use another backend"
            )
        return self


class ProgressEndpoint(Contract):
    """Where the trainer reports its progress. Training never waits for it."""

    url: Annotated[str, StringConstraints(pattern=r"^https://[^\s]+$")]
    """URL of the report: https://<operator>/v1/runs/<namespace>/<name>/progress."""

    ca_file: str
    """CA bundle that verifies the operator's certificate."""

    token_file: str
    """Projected service-account token for the operator's audience."""

    interval_seconds: float = Field(default=5, gt=0, le=5)
    """Time between heartbeats, in seconds."""


class Provenance(Contract):
    """Digests that every manifest of the attempt repeats."""

    config_digest: Digest
    """Digest of the recipe and everything else that determines the result. A checkpoint with another digest is never
    resumed."""

    image: str | None = None
    """Image reference of the trainer, with its digest if known."""


class StageConfig(VersionedContract):
    """What one attempt at one stage runs."""

    kind: Annotated[str, StringConstraints(pattern="^StageConfig$")] = "StageConfig"
    """Always StageConfig."""

    run: RunIdentity
    """The run that the attempt belongs to."""

    stage: StageSettings
    """The stage to run."""

    earlier_stages: list[DNSLabel] = []
    """Names of the earlier stages, in order."""

    longest_context_tokens: int = Field(ge=1)
    """Longest response, in tokens, that this attempt samples, including evaluations. vLLM starts once, with this
    length."""

    ordinal: int = Field(ge=1, le=999)
    """Number of the attempt. It increases with every RayJob of the run."""

    model: ModelSource
    """Starting weights of the run."""

    dataset: DatasetSource | None = None
    """Training problems. Required in a Train stage."""

    recipe: Recipe
    """Resolved GRPO+ settings."""

    parent: ParentRef | None = None
    """Checkpoint that the stage starts from while it has none of its own. Default: the model."""

    storage: Storage
    """Where the run keeps checkpoints and results."""

    judge: JudgeEndpoint = JudgeEndpoint()
    """Where programs are judged."""

    progress: ProgressEndpoint | None = None
    """Where the trainer reports its progress. Default: nowhere, as in a run by hand."""

    provenance: Provenance
    """Digests that the manifests repeat."""

    @model_validator(mode="after")
    def _train_has_problems(self) -> Self:
        if self.stage.type is StageType.TRAIN and self.dataset is None:
            raise ValueError("dataset is needed by a Train stage: set dataset.uri")
        return self
