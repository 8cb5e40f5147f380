"""The data types of training, and which component creates each.

The controller draws a `Problem` under a `group_id`. A sampler turns each (group, index) into a `Sample`, and the judge
adds its outcome. `group_size` samples make a `Group`. The groups of one step make a `Batch`, on which the learners
train. All are immutable values: a sample is never changed after it crossed a process boundary, so what is stored in
`samples/` is what was trained on. Token arrays are numpy, not torch, because processes that never load torch hold them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_contracts.stage import Extraction, Storage

T = TypeVar("T")

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


class Finish(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Problem:
    """One problem with its tests, as read from a dataset."""

    id: str
    source: str
    prompt: str
    """The user message, without the tokenizer's chat template."""
    tests: tuple[TestCase, ...]
    kind: Kind = Kind.STDIN
    fn_name: str | None = None
    time_limit_s: float = 12.0
    memory_limit_mb: int = 1024
    scoring: Scoring = Scoring.STRICT
    answer: str | None = None
    """Mathematics: the expected final answer, instead of tests."""
    float_tolerance: float | None = None
    """Strict scoring: relative and absolute tolerance of numbers; None: tokens must be equal as written."""
    extraction: Extraction = Extraction.LAST_BLOCK
    """Which part of a response is the program."""


@dataclass(frozen=True)
class VersionSpan:
    """Response tokens [start, end) were sampled with weights `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True)
class Generation:
    """One response as a sampler returns it."""

    output_ids: IntArray
    """[T] sampled tokens, including the end-of-sequence token if there is one."""
    logprobs: FloatArray
    """[T] log-probabilities of these tokens under the sampling distribution (temperature applied)."""
    finish: Finish
    text: str
    """The response as text, without special tokens."""
    versions: tuple[VersionSpan, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of judging a response."""

    reward: float | None
    """1.0 or 0.0 (or the number of a custom reward); None if the judge itself failed: the sample is quarantined."""
    verdict: str
    """The deciding verdict: `passed`, or the first other one; `no_code` without a fenced block, `no_answer` without a
    box, `error`."""
    seconds: float
    attempts: int = 1


@dataclass(frozen=True)
class Sample:
    """A judged response."""

    group_id: int
    index: int
    prompt_ids: IntArray
    generation: Generation
    outcome: Outcome
    limit: int
    """Response limit in tokens when the response was sampled."""

    @property
    def truncated(self) -> bool:
        """Whether the response reached its limit before it ended."""
        return self.generation.finish is Finish.LENGTH


@dataclass(frozen=True)
class Group:
    """All samples of one problem, in index order."""

    group_id: int
    problem_id: str
    admitted_version: int
    """Version of the weights when the group was admitted."""
    samples: tuple[Sample, ...]
    draw: int = 0
    """Number of groups that were dropped from the same slot before this one (recipe.refill)."""


@dataclass(frozen=True)
class Batch:
    """The groups that one step trains on, in group_id order."""

    step: int
    """The step of the stage that will train on the batch, from 1."""
    groups: tuple[Group, ...]

    @property
    def samples(self) -> list[Sample]:
        """All samples, in (group_id, index) order."""
        return [s for g in self.groups for s in g.samples]


@dataclass(frozen=True)
class Wave:
    """Requests that an engine starts together and in order, whatever their order of arrival (deterministic mode)."""

    name: str
    position: int
    """Position of this request in the wave, from 0."""
    size: int
    """Number of requests in the wave; the engine waits for all of them."""


@dataclass(frozen=True)
class GenerationRequest:
    """One response to sample."""

    request_id: str
    prompt_ids: IntArray
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int | None = None
    wave: Wave | None = None


class Sampler(Protocol):
    """A vLLM engine, or a group of engines behind the same interface (see sampler/)."""

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response. Raises SamplerLost if the engine died; the caller may try again."""
        ...

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        """Load new weights into the live engine: pause(keep), load, resume. Responses in flight continue.

        A sleeping engine allocates memory for the weights only, and samples again after `wake`.
        """
        ...

    def release_weights(self) -> None:
        """Let go of the last update's references, which nothing else needs. No request may run until the next one."""
        ...

    async def sleep(self) -> None:
        """Release the device's memory to the learner; responses in flight wait. Idempotent."""
        ...

    async def wake(self) -> None:
        """Sample again, after `update_weights`. Idempotent."""
        ...

    async def close(self) -> None:
        """Shut down the engine."""
        ...


TensorShape = tuple[str, tuple[int, ...]]
"""Name and shape of a tensor."""

PlacedTensor = tuple[str, str, tuple[int, ...], int]
"""Name, dtype and shape of a tensor, and its offset in a buffer in bytes."""


@dataclass(frozen=True)
class CardWeights:
    """All weights in one buffer on a GPU, for another process on the same GPU. Holds only plain values."""

    card: str
    """UUID of the GPU."""
    handle: tuple[object, ...]
    """The values from which torch opens the buffer: CUDA IPC handles as bytes, sizes, offsets."""
    tensors: tuple[PlacedTensor, ...]


@dataclass(frozen=True)
class BroadcastWeights:
    """Weights that learner rank 0 broadcasts once, to all samplers at the same time."""

    host: str
    port: int
    """Address of rank 0's TCPStore."""
    tensors: tuple[TensorShape, ...]
    """All tensors, in the order in which they are sent."""
    receiver: str = ""
    """Name under which a sampler's workers and the learner form their group."""


@dataclass(frozen=True)
class WeightRefs:
    """Weights on their way from learner to samplers: object-store references of named chunks.

    Each reference resolves to a `dict[str, numpy array]`. Together they cover every parameter of the model exactly
    once, under its Hugging Face name. Arrays of bfloat16 arrive as uint16; `dtype` then says `bfloat16`.
    """

    chunks: tuple[object, ...]
    dtype: str
    cards: tuple[CardWeights, ...] = ()
    """Instead of chunks: the weights' buffer on each GPU that learner and sampler share."""
    broadcast: BroadcastWeights | None = None
    """Instead of chunks: weights that are sent once, to the samplers that receive at that time."""
    send: Callable[[Sequence[str]], Awaitable[None]] | None = None
    """Makes the learner broadcast to the samplers of these names, which must receive meanwhile. Only for the driver."""

    def to(self, receiver: str) -> WeightRefs:
        """Return the references for the sampler of this name."""
        if self.broadcast is None:
            return self
        return replace(self, broadcast=replace(self.broadcast, receiver=receiver), send=None)


class Learner(Protocol):
    """All learner ranks behind one interface (see learner/)."""

    @property
    def threads(self) -> Sequence[int]:
        """CPU compute threads of each rank, in rank order."""
        ...

    async def train(self, batch: Batch) -> Mapping[str, float]:
        """Run one training step (`recipe.optimizerSteps` optimizer steps). Return its metrics."""
        ...

    async def export_weights(self) -> WeightRefs:
        """Return the current weights for the samplers, in the sampler's dtype."""
        ...

    async def gaps(self, batch: Batch) -> list[float]:
        """Return, per response token, the learner's current log-probability minus the sampler's, in any order.

        A gap is infinite where the sampler gave no finite log-probability.
        """
        ...

    async def park(self) -> None:
        """Release the device's memory to the samplers. Only `unpark` and `close` may follow. Idempotent."""
        ...

    async def unpark(self) -> None:
        """Take the memory back and restore its contents bit for bit. Idempotent."""
        ...

    async def save(self, directory: str) -> None:
        """Copy model and optimizer aside and start writing them below a directory, local to each rank's machine.

        Returns as soon as training may continue; `upload` waits for the files. Nothing is pickled.
        """
        ...

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        """Wait for the files of `save` or `save_pretrained`, upload them below `prefix`, and remove them locally.

        Returns one entry per file over all ranks, with paths relative to `prefix`.
        """
        ...

    async def download(self, directory: str, storage: Storage, prefix: str, manifest: Manifest) -> None:
        """Download the learner's files of a checkpoint to each rank's machine, and check their sizes and sha256.

        Raises `CheckpointDamaged`; nothing has been loaded then.
        """
        ...

    async def load(self, directory: str, *, optimizer: bool) -> None:
        """Load the files of `save` after `download`, at any world size. Without `optimizer`, its state is zero."""
        ...

    async def save_pretrained(self, directory: str) -> None:
        """Write bf16/fp32 safetensors, config and tokenizer in Hugging Face layout, on rank 0's machine."""
        ...

    async def beside(self, work: Callable[[Path], T]) -> T:
        """Return `work(folder of the starting model)`, run in a thread of rank 0's process.

        If the caller stops waiting, the thread continues; it ends with the process.
        """
        ...

    async def close(self) -> None:
        """Shut down the ranks."""
        ...
