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
    """What the model is asked, before the tokenizer's chat template where it has one."""
    tests: tuple[TestCase, ...]
    kind: Kind = Kind.STDIN
    fn_name: str | None = None
    time_limit_s: float = 12.0
    memory_limit_mb: int = 1024
    scoring: Scoring = Scoring.STRICT
    answer: str | None = None
    """Mathematics: the final answer, instead of tests."""
    float_tolerance: float | None = None
    """Strict comparison: how far numbers may be off, relative and absolute; None: tokens are compared as written."""
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
    """[T] sampled tokens, the end-of-sequence token included when there is one."""
    logprobs: FloatArray
    """[T] log-probabilities of these tokens under the sampling distribution (temperature applied)."""
    finish: Finish
    text: str
    """The response as text, special tokens left out."""
    versions: tuple[VersionSpan, ...]


@dataclass(frozen=True)
class Outcome:
    """What judging a response came to."""

    reward: float | None
    """1.0 or 0.0 (or a user's own number); None if the judge itself failed: such a sample is quarantined."""
    verdict: str
    """The verdict that decided: `passed`, the first that was not, `no_code` without a fenced block, `no_answer`
    without a box, `error`."""
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
    """Response limit in tokens that was in force."""

    @property
    def truncated(self) -> bool:
        """Whether the response filled its limit without ending."""
        return self.generation.finish is Finish.LENGTH


@dataclass(frozen=True)
class Group:
    """All samples of one problem, in index order."""

    group_id: int
    problem_id: str
    admitted_version: int
    """Version of the weights when it was admitted."""
    samples: tuple[Sample, ...]
    draw: int = 0
    """Groups that were dropped before it in its place (recipe.refill)."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on: groups in group_id order."""

    step: int
    """The step (of the stage) that will train on it, from 1."""
    groups: tuple[Group, ...]

    @property
    def samples(self) -> list[Sample]:
        """All samples, in (group_id, index) order."""
        return [s for g in self.groups for s in g.samples]


@dataclass(frozen=True)
class Wave:
    """Requests that an engine starts together and in order, whatever order they arrive in (deterministic mode)."""

    name: str
    position: int
    """Place of this request, from 0."""
    size: int
    """Requests in the wave; the engine waits for all of them."""


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
    """A vLLM engine, or a group of them behind one face (see sampler/)."""

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response; raises SamplerLost if its engine died (the caller asks again)."""
        ...

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        """Load new weights into the live engine: pause(keep), load, resume. Responses in flight go on.

        An engine that sleeps takes memory for them and nothing else: it samples when it is woken.
        """
        ...

    async def sleep(self) -> None:
        """Give the device's memory to the learner; responses in flight wait. Asleep already: nothing."""
        ...

    async def wake(self) -> None:
        """Sample again, after `update_weights`. Awake already: nothing."""
        ...

    async def close(self) -> None:
        """End the engine."""
        ...


TensorShape = tuple[str, tuple[int, ...]]
"""Name and shape."""

PlacedTensor = tuple[str, str, tuple[int, ...], int]
"""Name, number format, shape, and where it begins in a buffer of bytes."""


@dataclass(frozen=True)
class CardWeights:
    """All weights in one buffer on a card, for another process on the same card; plain values alone."""

    card: str
    """UUID of the card."""
    handle: tuple[object, ...]
    """What torch opens the buffer with: CUDA IPC handles as bytes, sizes, offsets."""
    tensors: tuple[PlacedTensor, ...]


@dataclass(frozen=True)
class BroadcastWeights:
    """Weights that the learner's first rank sends once, to all samplers at the same time."""

    host: str
    port: int
    """Where its store listens."""
    tensors: tuple[TensorShape, ...]
    """In the order in which they are sent."""
    receiver: str = ""
    """Name that a sampler's workers and the learner meet by."""


@dataclass(frozen=True)
class WeightRefs:
    """Weights on their way from learner to samplers: object-store references of named chunks.

    Each reference resolves to a `dict[str, numpy array]` (bfloat16 is sent as uint16 with `dtype` saying so),
    together covering every parameter of the model exactly once, in Hugging Face names.
    """

    chunks: tuple[object, ...]
    dtype: str
    cards: tuple[CardWeights, ...] = ()
    """Instead of chunks: where the weights lie on each card that learner and sampler share."""
    broadcast: BroadcastWeights | None = None
    """Instead of chunks: sent to samplers that receive at the same time, and to none later."""
    send: Callable[[Sequence[str]], Awaitable[None]] | None = None
    """Has the learner send to samplers of these names, which receive meanwhile. The driver's alone."""

    def to(self, receiver: str) -> WeightRefs:
        """As a sampler of this name gets them."""
        if self.broadcast is None:
            return self
        return replace(self, broadcast=replace(self.broadcast, receiver=receiver), send=None)


class Learner(Protocol):
    """All learner ranks behind one face (see learner/)."""

    @property
    def threads(self) -> Sequence[int]:
        """CPU threads that each rank computes with, in rank order."""
        ...

    async def train(self, batch: Batch) -> Mapping[str, float]:
        """One training step (`recipe.optimizerSteps` optimizer steps); returns its metrics."""
        ...

    async def export_weights(self) -> WeightRefs:
        """Current weights for the samplers, in the sampler's dtype."""
        ...

    async def gaps(self, batch: Batch) -> list[float]:
        """Its own log-probabilities now of these samples' tokens less the sampler's, in any order.

        Infinite where the sampler gave none.
        """
        ...

    async def park(self) -> None:
        """Give the device's memory to the samplers; nothing but `unpark` and `close` may follow. Parked: nothing."""
        ...

    async def unpark(self) -> None:
        """Take it back, to the bit as it was. Not parked: nothing."""
        ...

    async def save(self, directory: str) -> None:
        """Copy model and optimizer aside and begin to write them below a directory (local to each rank's machine).

        Returns as soon as training may go on; `upload` waits for the files. No pickle anywhere.
        """
        ...

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        """Wait for what `save` or `save_pretrained` writes, put it below `prefix` from where it is, remove it there.

        Returns one entry a file, paths relative to `prefix`, over all ranks.
        """
        ...

    async def download(self, directory: str, storage: Storage, prefix: str, manifest: Manifest) -> None:
        """Bring the learner's files of a checkpoint to each rank's machine, sizes and sha256 checked.

        Raises `CheckpointDamaged`; nothing has been loaded then.
        """
        ...

    async def load(self, directory: str, *, optimizer: bool) -> None:
        """Load what `save` wrote (and `download` brought), at any world size."""
        ...

    async def save_pretrained(self, directory: str) -> None:
        """Write bf16/fp32 safetensors, config and tokenizer in Hugging Face layout, on rank 0's machine."""
        ...

    async def beside(self, work: Callable[[Path], T]) -> T:
        """What `work` makes of the folder of the model that training began with, in a thread of rank 0's process.

        Whoever waits no longer leaves the thread behind: it ends with the process.
        """
        ...

    async def close(self) -> None:
        """End the ranks."""
        ...
