"""Durable records: the run record, attempt claims, checkpoint and evaluation manifests.

A manifest is written last, with `If-None-Match: *`. It commits everything that it lists: data without a manifest does
not exist. Its digest is taken over the stored bytes, and each manifest names its parent's digest, so a chain from an
exported model to the base can be walked and any change found. A writer that was declared dead may still finish an
upload; `lineage.newest_checkpoint` ignores it because of the newer claim.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import FailFast, Field, StringConstraints

from deepcoder_contracts.base import Contract, Digest, DNSLabel, Figures, Record
from deepcoder_contracts.gate import GateRecord

RelativePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./=-]*$", max_length=512)]
"""A key below the manifest's own folder. Readers also refuse `..` segments."""


BY_HAND = "local"
"""Namespace of a run by hand, which is not applied to a cluster. Each of its stages counts attempts from 1."""


class RunIdentity(Contract):
    """Identity of a run."""

    namespace: DNSLabel
    """Namespace of the DeepCoderRun; `local` for a run by hand."""

    name: DNSLabel
    """Name of the DeepCoderRun."""

    uid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
    """UID of the DeepCoderRun. A run that is created again under the same name is another run."""


class ParentRef(Contract):
    """A checkpoint, identified by location and content."""

    uri: Annotated[str, StringConstraints(pattern=r"^(s3|file)://[^\s]+$")]
    """Folder of the checkpoint, which contains its MANIFEST.json."""

    digest: Digest
    """Digest of the checkpoint's MANIFEST.json."""


class FileEntry(Contract):
    """One file of a checkpoint."""

    path: RelativePath
    """Path of the file, relative to the manifest's folder."""

    size: int = Field(ge=0)
    """Size in bytes."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the content, hexadecimal."""

    s3_checksum: str | None = None
    """ChecksumSHA256 as S3 reports it (base64; `…-N` for N parts). None on a file system."""


class ManifestKind(StrEnum):
    """What a manifest commits."""

    CHECKPOINT = "Checkpoint"
    EXPORT = "Export"
    EVALUATION = "Evaluation"


class ComputeThreads(Contract):
    """Number of compute threads of each process of an attempt, in order of the process numbers."""

    learners: Annotated[list[Annotated[int, Field(ge=1)]], FailFast()]
    """Threads of each learner rank."""

    samplers: Annotated[list[Annotated[int, Field(ge=1)]], FailFast()] = []
    """Threads of each vLLM engine on CPUs. Empty on GPUs."""


class Manifest(Record):
    """The commit of a checkpoint, of an exported model, or of an evaluation."""

    kind: ManifestKind
    """Checkpoint, Export or Evaluation."""

    run: RunIdentity
    """The run that made the content."""

    stage: DNSLabel
    """The stage that made the content."""

    stage_index: int = Field(ge=0)
    """Position of the stage in the run, from 0."""

    ordinal: int = Field(ge=1)
    """Number of the attempt that made the content."""

    step: int = Field(ge=0)
    """Number of steps of this stage that trained the weights."""

    total_steps: int = Field(default=0, ge=0)
    """Number of steps of all stages that trained the weights."""

    final: bool = False
    """Whether the stage ended here, by maxSteps or because its gate was met."""

    parent: ParentRef | None = None
    """What the content was made from: the preceding checkpoint, the exported checkpoint or the evaluated export. None
    for the first checkpoint of a run that starts from a model, for an evaluation of that model, and for an evaluation
    during training. The weights of the latter are identified by stage, step and ordinal, and may never be stored."""

    model: str | None = None
    """URI of the model at the root of the chain. For a hub, it includes the commit (in older manifests: the requested
    revision)."""

    model_files: Annotated[dict[str, Digest], Field(max_length=32)] = {}
    """Digests of the model's configuration and tokenizer as the attempt read them, by file name. Empty in older
    manifests."""

    config_digest: Digest
    """Digest of the run's resolved config."""

    dataset_digest: Digest | None = None
    """Digest of the training problems."""

    problems_digest: Digest | None = None
    """Digest of the names and prompts of the problems that groups are made of, in order: the training problems that can
    be judged and have a prompt that is short enough. None in older manifests."""

    reward_digest: Digest | None = None
    """Digest of the source of recipe.reward. None if the judge's verdict is the reward, and in older manifests."""

    code_digest: Digest
    """Digest of the trainer's own source."""

    versions: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Versions of Python and of the packages that influence a result, by name. Empty in older manifests."""

    image: str | None = None
    """Image reference of the trainer."""

    image_id: Annotated[str, Field(max_length=512)] | None = None
    """The image with its digest, as resolved on the node of the attempt's head. The operator sends it in its replies.
    None in a run by hand, before the first reply, and in older manifests."""

    accelerator: Annotated[str, Field(max_length=256)] | None = None
    """GPU models that the attempt ran on, separated by commas. None on CPUs, if unknown, and in older manifests."""

    seed: int = Field(ge=0)
    """Random seed of the run."""

    world_size: int = Field(ge=0)
    """Number of learner ranks that wrote the checkpoint. Any number can load it, but a deterministic run continues only
    with the same number."""

    compute_threads: ComputeThreads | Annotated[int, Field(ge=1)] | None = None
    """Compute threads of a deterministic run, because the split of a sum over threads determines its last bits. None
    in other runs and in some older manifests; others of these have one number, the largest of any learner rank."""

    metrics: Figures = {}
    """Metrics of this step, or results of this evaluation."""

    gate: GateRecord | None = None
    """Verdict of the stage's gate at this step."""

    evaluation_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Evaluation: SHA-256 of all inputs. It is also the name of the folder."""

    created_at: datetime
    """Time at which the manifest was written (UTC, for display only)."""

    files: Annotated[list[FileEntry], FailFast()] = []
    """All files in the manifest's folder except the manifest."""


class RunRecord(Record):
    """RUN.json: the owner of this prefix. Written once, with `If-None-Match: *`."""

    run: RunIdentity
    """The run that owns the prefix."""

    config_digest: Digest
    """Digest of the run's resolved config."""

    created_at: datetime
    """Time at which the record was written (UTC)."""


class Claim(Record):
    """claim.json: an attempt has started. Attempts with lower ordinals may not commit anything after it."""

    run: RunIdentity
    """The run of the attempt."""

    stage: DNSLabel
    """The stage of the attempt."""

    ordinal: int = Field(ge=1)
    """Number of the attempt."""

    claimed_at: datetime
    """Time at which the attempt started (UTC, for display only; the storage's clock decides the order)."""
