"""The stage config: all that one attempt of one stage needs to know, from the operator or from a researcher.

`deepcoder-trainer run --config FILE` reads it. The operator writes one for each (stage, ordinal); by hand a file
may hold a whole run (`LocalRun` of the trainer), which is expanded into these. There is no resume flag: the trainer
finds the newest complete manifest below `storage` itself, and falls back to `parent`, then to the model.
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
    """Train updates weights; Evaluate measures checkpoints at a length of its own."""

    TRAIN = "Train"
    EVALUATE = "Evaluate"


class Placement(StrEnum):
    """Separate: samplers and learners have devices of their own. Colocated: they take turns on the same ones."""

    SEPARATE = "Separate"
    COLOCATED = "Colocated"


class OptimizerState(StrEnum):
    """What a Train stage does with its parent's optimizer state."""

    RESET = "Reset"
    CARRY = "Carry"


class ModelSource(Contract):
    """Where the starting weights come from, in Hugging Face layout (config, safetensors, tokenizer)."""

    uri: SourceURI
    """hf://org/name, s3://bucket/prefix, file:///path, or a path in the image."""

    revision: str | None = None
    """Commit of a hub repository."""


class DatasetSource(Contract):
    """Training problems: JSON Lines (gzip allowed) or Parquet, or published sets to make them from."""

    uri: SourceURI | None = None
    """hf://org/name, s3://bucket/key, file:///path, or a path in the image. Instead: curation."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected digest of the file at uri; a difference stops the run before any work."""

    curation: CurationSpec | None = None
    """Published sets to make them from, once, before training. Instead: uri."""

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.uri is None) == (self.curation is None):
            raise ValueError(
                "give exactly one of dataset.uri (problems that are ready) and dataset.curation (published sets to "
                "make them from)"
            )
        if self.sha256 is not None and self.uri is None:
            raise ValueError("dataset.sha256 is for dataset.uri: give each of curation.inputs its own sha256")
        return self


def _written(day: Any) -> Any:
    return day.isoformat() if isinstance(day, date) else day


Day = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), BeforeValidator(_written)]
"""A day, as YYYY-MM-DD; YAML without quotes makes a date of it."""


class Extraction(StrEnum):
    """LastBlock: the last fenced block that is closed. LiveCodeBench: what lies between the last two fences."""

    LAST_BLOCK = "LastBlock"
    LIVECODEBENCH = "LiveCodeBench"


class EvaluationDataset(Contract):
    """A named set of problems to evaluate on."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
    """Name in metrics and gates: eval/<name>/pass_at_1, eval/<name>/rating."""

    uri: SourceURI
    """Where its problems are: in the formats of training problems, or in the layout of a published benchmark."""

    since: Day | None = None
    """Only problems published on this day or later, as YYYY-MM-DD; every problem then needs a date."""

    until: Day | None = None
    """Only problems published before this day, as YYYY-MM-DD; every problem then needs a date."""

    extraction: Extraction = later(Extraction.LAST_BLOCK)
    """The program is LastBlock: the last closed fenced block, or LiveCodeBench: all between the last two fences."""

    contests: SourceURI | None = None
    """Codeforces: folder of standings and ratings, from which eval/<name>/rating is computed."""

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        for name, day in (("since", self.since), ("until", self.until)):
            try:
                date.fromisoformat(day or "2000-01-01")
            except ValueError:
                raise ValueError(f"dataset {self.name}: {name} {day} is no day of the calendar") from None
        if self.since and self.until and self.since >= self.until:
            raise ValueError(f"dataset {self.name}: no day is both since {self.since} and before {self.until}")
        return self


class Evaluation(Contract):
    """What is evaluated, and at which length."""

    datasets: Annotated[list[EvaluationDataset], Field(min_length=1, max_length=16)]
    """Problem sets; each gets a result of its own."""

    context_tokens: int | None = Field(default=None, ge=1)
    """Response limit in tokens. Default: the stage's contextTokens."""

    every_steps: int | None = Field(default=None, ge=1)
    """Train stages: evaluate each so many steps, and at the end. Default: at the end only."""

    samples_per_problem: int = Field(default=1, ge=1, le=1024)
    """Responses sampled for each problem; pass@1 is their mean."""

    targets: Annotated[
        list[Annotated[str, StringConstraints(pattern=r"^(Base|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")]], Field(max_length=32)
    ] = []
    """Evaluate stages: `Base` (the starting model) and names of earlier Train stages, all measured on the same
    problems and seeds so that they can be compared in pairs. Default: the newest Train stage."""


class StageResources(Contract):
    """How many processes an attempt has; their devices come with the pods."""

    samplers: int = Field(default=1, ge=1, le=4096)
    """vLLM engines."""

    learners: int = Field(default=1, ge=0, le=4096)
    """Learner ranks; 0 only in Evaluate stages."""

    accelerators: bool = False
    """Whether samplers and learners run on GPUs; otherwise on CPUs."""


class StageSettings(Contract):
    """One stage of a run, as data."""

    name: DNSLabel
    """Unique in the run."""

    index: int = Field(ge=0, le=63)
    """Position in the run."""

    type: StageType
    """Train or Evaluate."""

    context_tokens: int = Field(ge=1, le=1_048_576)
    """Longest response in tokens; the prompt comes on top (recipe.maxPromptTokens)."""

    rope: RopeScaling | None = None
    """Scaled rotary positions, in all that this stage samples and trains. Default: the model's own."""

    max_steps: int = Field(default=0, ge=0)
    """Steps of this stage; 0 only in Evaluate stages."""

    optimizer: OptimizerState = OptimizerState.CARRY
    """Whether the optimizer state is taken over from the stage before."""

    placement: Placement = Placement.SEPARATE
    """Separate or Colocated."""

    resources: StageResources = StageResources()
    """Processes of the attempt."""

    evaluate: Evaluation | None = None
    """Evaluation within, or by, this stage."""

    promote_when: PromoteWhen | None = None
    """Gate that may end the stage before maxSteps."""

    stall_seconds: int = Field(default=1800, ge=10)
    """Longest time without progress before the attempt counts as stalled."""

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
                f"stage {self.name}: placement Colocated gives each learner a sampler on its own device, but there are "
                f"{self.resources.learners} learners and {self.resources.samplers} samplers: set resources.samplers "
                "and resources.learners to the same number"
            )
        return self


class Storage(Contract):
    """Where the run keeps checkpoints and results. Credentials come from AWS_* variables, never from here."""

    uri: StorageURI
    """Root of the run: s3://bucket/prefix/namespace/run-uid8 or file:///path."""

    region: str | None = None
    """S3 region."""

    endpoint: str | None = None
    """S3 endpoint URL of a server other than AWS."""

    every_steps: int = Field(default=10, ge=1)
    """Steps between checkpoints; the last step of a stage always gets one."""

    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints of a stage whose payload is kept."""

    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of this step keep their payload too."""

    drain_seconds: int = Field(default=300, ge=1)
    """Time the trainer has to save after it is asked to stop."""


class JudgeBackend(StrEnum):
    """Pool: the HTTP servers behind a Service. Local: a server of the trainer's own on a Unix socket. Together:
    Together Code Interpreter, a hosted API."""

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
    """Base URL of the API; another one is a proxy's, or a test's on this machine. The key is never sent in the clear:
    https, except to this machine."""

    concurrency: int = Field(default=64, ge=1, le=4096)
    """Programs that are run there at once, each in a session of its own."""


class TogetherEndpoint(HostedInterpreter):
    """How the trainer reaches Together Code Interpreter."""

    key_file: str
    """File with the API key; it is read again when it changes."""


class JudgeEndpoint(Contract):
    """How the trainer reaches judges."""

    backend: JudgeBackend = JudgeBackend.LOCAL
    """Pool, Local or Together."""

    host: str | None = None
    """Pool: name of the headless Service; every address behind it is a judge."""

    port: int = Field(default=8080, ge=1, le=65535)
    """Pool: port of each judge."""

    token_file: str | None = None
    """Pool: file with the bearer token."""

    workers: int | None = Field(default=None, ge=1)
    """Local: programs judged at once. Default: the number of CPUs."""

    together: TogetherEndpoint | None = None
    """Together: the API and its key."""

    @model_validator(mode="after")
    def _has_what_its_back_end_needs(self) -> Self:
        if self.backend is JudgeBackend.POOL and not (self.host and self.token_file):
            raise ValueError("judge.backend Pool needs judge.host and judge.tokenFile")
        if (self.backend is JudgeBackend.TOGETHER) != (self.together is not None):
            raise ValueError(
                "judge.together is needed by judge.backend Together, and by no other: give judge.together.keyFile, or "
                "another backend"
            )
        return self


class ProgressEndpoint(Contract):
    """Where progress goes. Training never waits for it."""

    url: Annotated[str, StringConstraints(pattern=r"^https://[^\s]+$")]
    """https://<operator>/v1/runs/<namespace>/<name>/progress."""

    ca_file: str
    """CA bundle that the operator's certificate is checked against."""

    token_file: str
    """Projected service-account token bound to the operator's audience."""

    interval_seconds: float = Field(default=5, gt=0, le=5)
    """Time between heartbeats."""


class Provenance(Contract):
    """Digests that every manifest of the attempt repeats."""

    config_digest: Digest
    """Of the recipe and all else that decides the result; a checkpoint with another is never resumed."""

    image: str | None = None
    """Image reference of the trainer, with its digest where known."""


class StageConfig(VersionedContract):
    """What one attempt of one stage runs."""

    kind: Annotated[str, StringConstraints(pattern="^StageConfig$")] = "StageConfig"
    """Always StageConfig."""

    run: RunIdentity
    """The run this attempt belongs to."""

    stage: StageSettings
    """The stage."""

    earlier_stages: list[DNSLabel] = []
    """Names of the stages before this one, in order."""

    longest_context_tokens: int = Field(ge=1)
    """Longest response of any length this attempt samples at, evaluation included; vLLM starts once, with this."""

    ordinal: int = Field(ge=1, le=999)
    """Number of this attempt; it grows with every RayJob of the run."""

    model: ModelSource
    """Starting weights of the run."""

    dataset: DatasetSource | None = None
    """Training problems; needed by Train stages."""

    recipe: Recipe
    """GRPO+ settings, resolved."""

    parent: ParentRef | None = None
    """Checkpoint this stage starts from when it has none of its own; None starts from the model."""

    storage: Storage
    """Where results go."""

    judge: JudgeEndpoint = JudgeEndpoint()
    """Where programs are judged."""

    progress: ProgressEndpoint | None = None
    """Where progress goes; None by hand."""

    provenance: Provenance
    """Digests for the manifests."""

    @model_validator(mode="after")
    def _train_has_problems(self) -> Self:
        if self.stage.type is StageType.TRAIN and self.dataset is None:
            raise ValueError("dataset is needed by a Train stage: set dataset.uri")
        return self
