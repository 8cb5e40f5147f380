"""What is durable: the run record, attempt claims, checkpoint and evaluation manifests.

A manifest is put last, with `If-None-Match: *`, and is the commit of everything it lists: what has no manifest does
not exist. Its digest is taken over the stored bytes, and each names its parent's, so that a chain from an exported
model to the base can be walked and any change found. A writer that was declared dead may still finish an upload:
see `lineage.newest_checkpoint`, which ignores it by its claim.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from deepcoder_contracts.base import Contract, Digest, DNSLabel, Figures, Record
from deepcoder_contracts.gate import GateRecord

RelativePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./=-]*$", max_length=512)]
"""A key below the manifest's own folder. Readers also refuse `..` segments."""


BY_HAND = "local"
"""In the place of a namespace: a run that nobody has applied to a cluster, whose stages each count attempts from 1."""


class RunIdentity(Contract):
    """Which run something belongs to."""

    namespace: DNSLabel
    """Namespace of the DeepCoderRun; `local` by hand."""

    name: DNSLabel
    """Name of the DeepCoderRun."""

    uid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
    """UID of the DeepCoderRun: a run made again under the same name is another run."""


class ParentRef(Contract):
    """A checkpoint by place and content."""

    uri: Annotated[str, StringConstraints(pattern=r"^(s3|file)://[^\s]+$")]
    """Folder of the checkpoint (where its MANIFEST.json is)."""

    digest: Digest
    """Digest of its MANIFEST.json."""


class FileEntry(Contract):
    """One file of a checkpoint."""

    path: RelativePath
    """Key below the manifest's folder."""

    size: int = Field(ge=0)
    """Bytes."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the content, hexadecimal."""

    s3_checksum: str | None = None
    """ChecksumSHA256 as S3 reports it (base64; `…-N` for N parts), None on a file system."""


class ManifestKind(StrEnum):
    """What a manifest commits."""

    CHECKPOINT = "Checkpoint"
    EXPORT = "Export"
    EVALUATION = "Evaluation"


class ComputeThreads(Contract):
    """CPU threads that each process of an attempt computes with, in the order of their numbers."""

    learners: list[Annotated[int, Field(ge=1)]]
    """Of each rank."""

    samplers: list[Annotated[int, Field(ge=1)]] = []
    """Of each vLLM engine on CPUs; none on GPUs."""


class Manifest(Record):
    """The commit of a checkpoint, of an exported model, or of an evaluation."""

    kind: ManifestKind
    """Checkpoint, Export or Evaluation."""

    run: RunIdentity
    """The run that made it."""

    stage: DNSLabel
    """The stage that made it."""

    stage_index: int = Field(ge=0)
    """Position of the stage."""

    ordinal: int = Field(ge=1)
    """The attempt that made it."""

    step: int = Field(ge=0)
    """Steps of this stage that the weights have seen."""

    total_steps: int = Field(default=0, ge=0)
    """Steps of all stages that the weights have seen."""

    final: bool = False
    """Whether the stage ended here (maxSteps, or its gate was met)."""

    parent: ParentRef | None = None
    """What it was made from: the checkpoint before it, the checkpoint that was exported, the export that was evaluated.
    None for the first of a run that starts from a model, for an evaluation of that model, and for one within training,
    whose weights are told by stage, step and ordinal alone: they may never be stored."""

    model: str | None = None
    """URI of the model at the chain's root; of a hub's with the commit (in older manifests, the revision asked for)."""

    model_files: Annotated[dict[str, Digest], Field(max_length=32)] = {}
    """Configuration and tokenizer of that model as this attempt read them, by file name; empty in older manifests."""

    config_digest: Digest
    """Of the run's resolved config."""

    dataset_digest: Digest | None = None
    """Of the training problems."""

    reward_digest: Digest | None = None
    """Of the source of recipe.reward; None where the judge's verdict is the reward, and in older manifests."""

    code_digest: Digest
    """Of the trainer's own source."""

    versions: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Of Python and of the packages that decide a result, by name; empty in older manifests."""

    image: str | None = None
    """Trainer image reference."""

    image_id: Annotated[str, Field(max_length=512)] | None = None
    """The image with its digest, as the node of the attempt's head resolved it; the operator tells it in its replies.
    None by hand, before the first reply, and in older manifests."""

    accelerator: Annotated[str, Field(max_length=256)] | None = None
    """Model of the GPUs that the attempt ran on, comma-separated where there are several; None on CPUs, where it
    cannot be told, and in older manifests."""

    seed: int = Field(ge=0)
    """The run's seed."""

    world_size: int = Field(ge=0)
    """Learner ranks that wrote it; it loads at any, but a deterministic run goes on at the same number alone."""

    compute_threads: ComputeThreads | Annotated[int, Field(ge=1)] | None = None
    """In a deterministic run: how a sum is split over threads decides its last bits. None where that does not matter,
    and in older manifests, which may have the most of any learner rank instead."""

    metrics: Figures = {}
    """Metrics of this step, or results of this evaluation."""

    gate: GateRecord | None = None
    """The stage's gate at this step."""

    evaluation_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Evaluation: sha256 of all its inputs, which is also its folder's name."""

    created_at: datetime
    """When it was written (UTC, for people)."""

    files: list[FileEntry] = []
    """Everything below its folder but itself."""


class RunRecord(Record):
    """RUN.json: who owns this prefix. Put once, with `If-None-Match: *`."""

    run: RunIdentity
    """The owner."""

    config_digest: Digest
    """Of the run's resolved config."""

    created_at: datetime
    """When it was written (UTC)."""


class Claim(Record):
    """claim.json: an attempt has begun; lower ordinals may commit nothing after it."""

    run: RunIdentity
    """The run."""

    stage: DNSLabel
    """The stage."""

    ordinal: int = Field(ge=1)
    """The attempt."""

    claimed_at: datetime
    """When it began (UTC, for people; order is taken from the storage's own clock)."""
