"""What stands in for GPUs and judges in `make bench-pipeline`, and what no pipeline could beat on the same trace.

Samplers are one machine that many responses share: each of n responses under way gets R/n tokens a second, and at most
as many as one alone can. R is such that a batch alone takes as long as the published times say, so the long tail of a
batch, in which few responses are left and most of the machine is idle, is there as it is in practice. Judges are slots;
a learner takes time by the tokens of its batch. All are driven by the event loop's clock.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.seeds import seed as derive_seed
from deepcoder_trainer.types import (
    Batch,
    Finish,
    Generation,
    GenerationRequest,
    Outcome,
    Problem,
    VersionSpan,
    WeightRefs,
)

CUT_OFF = "cut off"
SETTINGS = Path(__file__).with_name("pipeline.json")


@dataclass(frozen=True)
class Seconds:
    """The published times of a step."""

    sampling: float
    training: float
    reward: float
    split_sampling: float
    split_training: float
    sync: float


@dataclass(frozen=True)
class Trace:
    """Whose responses are how long: the same for every mode."""

    seconds: Seconds
    lengths: npt.NDArray[np.int64]
    """[steps, prompts, group] tokens."""
    fastest: float
    """Tokens a second of a response that has the machine to itself."""
    judge_slots: int
    cap: int

    @property
    def steps(self) -> int:
        return len(self.lengths)

    @property
    def prompts(self) -> int:
        return self.lengths.shape[1]

    @property
    def group(self) -> int:
        return self.lengths.shape[2]

    @property
    def judge_seconds(self) -> float:
        """One judging, such that those of a batch at once take all slots for the published time."""
        return self.seconds.reward * self.judge_slots / ((self.lengths < self.cap).sum() / self.steps)

    def rate(self, seconds: float) -> float:
        """Tokens a second of a machine on which batches alone take `seconds` on average."""
        low, high = 1.0, self.fastest * self.prompts * self.group
        for _ in range(60):
            middle = (low + high) / 2
            taken = np.mean([batch_seconds(batch, middle, self.fastest) for batch in self.lengths])
            low, high = (middle, high) if taken > seconds else (low, middle)
        return high

    def training_seconds(self, tokens: float, mean: float) -> float:
        """Training takes time by the tokens of a batch, `mean` seconds on average."""
        return mean * tokens / (self.lengths.sum() / self.steps)


def read_trace(steps: int | None = None, prompts: int | None = None) -> tuple[Trace, float]:
    """The trace of the settings file, or one of another size, and the scale of time."""
    document = json.loads(SETTINGS.read_text())
    lengths = document["lengths"]
    size = (steps or document["steps"], prompts or document["promptsPerStep"], document["groupSize"])
    chance = np.random.Generator(np.random.Philox(document["seed"]))
    drawn = chance.lognormal(np.log(lengths["median"]), lengths["sigma"], size)
    s = document["seconds"]
    seconds = Seconds(s["sampling"], s["training"], s["reward"], s["splitSampling"], s["splitTraining"], s["sync"])
    trace = Trace(
        seconds,
        np.clip(drawn, 1, lengths["cap"]).astype(np.int64),
        document["tokensPerSecondOfOneSequence"],
        document["judgeSlots"],
        lengths["cap"],
    )
    return trace, float(document["scale"])


def batch_seconds(lengths: npt.NDArray[np.int64], rate: float, fastest: float) -> float:
    """How long these responses take alone, all begun at once."""
    ordered = np.sort(lengths, axis=None)
    left = np.arange(len(ordered), 0, -1)
    return float((np.diff(ordered, prepend=0) / np.minimum(fastest, rate / left)).sum())


def one_off_bound(trace: Trace, rate: float) -> float:
    """The least seconds of strict one-off: a batch is sampled while the one before is trained, weights go between."""
    sampling = [batch_seconds(batch, rate, trace.fastest) for batch in trace.lengths]
    training = [trace.training_seconds(batch.sum(), trace.seconds.split_training) for batch in trace.lengths]
    after = [*sampling[1:], 0.0]
    return sampling[0] + sum(max(s, t + trace.seconds.sync) for s, t in zip(after, training, strict=True))


def window_bound(trace: Trace, rate: float, off_policy: int) -> float:
    """The least seconds of any order that keeps the samplers busy and the learner too, once it has its first batch.

    The first batch is the groups of the fewest tokens among those that may be active, as if samplers did nothing else.
    """
    active = trace.lengths[: off_policy + 1].sum(axis=2).reshape(-1)
    first = np.sort(active)[: trace.prompts].sum() / rate
    training = trace.training_seconds(trace.lengths.sum(), trace.seconds.split_training)
    learner = first + training + trace.steps * trace.seconds.sync
    samplers = trace.lengths.sum() / rate + trace.seconds.sync
    return float(max(learner, samplers))


@dataclass
class SharedSampler:
    """The `Sampler` protocol over one machine that all responses share."""

    trace: Trace
    rate: float
    second: float
    """Seconds of the loop's clock that one of the model's takes."""
    version: int = -1
    began: float | None = None
    """Loop time of the first request."""
    _paused: bool = False
    _tokens: float = 0.0
    """Tokens that a response has got which is there from the start."""
    _at: float = 0.0
    _under_way: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    _count: int = 0
    _timer: asyncio.TimerHandle | None = None
    _planned: bool = False

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response: as many tokens as the trace says."""
        group, index = (int(part) for part in request.request_id.split("/")[1:])
        step, prompt = divmod(group, self.trace.prompts)
        length = int(self.trace.lengths[step, prompt, index])
        loop = asyncio.get_running_loop()
        self.began = loop.time() if self.began is None else self.began
        begun = self.version
        self._pass_time()
        self._count += 1
        done: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._under_way, (self._tokens + length, self._count, done))
        self._plan()
        await done
        nothing = np.broadcast_to(np.int32(0), (length,))
        half = length // 2
        spans = (VersionSpan(begun, 0, length),)
        if self.version != begun:
            spans = (VersionSpan(begun, 0, half), VersionSpan(self.version, half, length))
        cut_off = length == self.trace.cap
        finish, text = (Finish.LENGTH, CUT_OFF) if cut_off else (Finish.STOP, request.request_id)
        return Generation(nothing, np.broadcast_to(np.float32(0), (length,)), finish, text, spans)

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        """Everybody stands still meanwhile, and goes on afterwards."""
        self._pass_time()
        self._paused = True
        self._plan()
        await asyncio.sleep(self.trace.seconds.sync * self.second)
        self._pass_time()
        self._paused, self.version = False, version
        self._plan()

    async def close(self) -> None: ...

    @property
    def _speed(self) -> float:
        """Tokens that each response gets in a second of the loop's clock."""
        if self._paused or not self._under_way:
            return 0.0
        return min(self.trace.fastest, self.rate / len(self._under_way)) / self.second

    def _pass_time(self) -> None:
        now = asyncio.get_running_loop().time()
        self._tokens += self._speed * (now - self._at)
        self._at = now

    def _plan(self) -> None:
        if not self._planned:  # once for all that changes in one turn of the loop
            self._planned = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Answer what is whole, and come back for the next."""
        self._planned = False
        self._pass_time()
        while self._under_way and self._under_way[0][0] <= self._tokens + 1e-6:
            _, _, done = heapq.heappop(self._under_way)
            if not done.done():
                done.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._speed > 0:
            wait = (self._under_way[0][0] - self._tokens) / self._speed
            self._timer = asyncio.get_running_loop().call_later(wait, self._look)


@dataclass
class ModelJudge:
    """Judges as slots. In the serial baseline none begins before all of its batch is sampled."""

    trace: Trace
    second: float
    serial: bool
    _arrived: dict[int, int] = field(default_factory=dict)
    _whole: dict[int, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.trace.judge_slots)

    async def __call__(self, problem: Problem, response: str, key: str) -> Outcome:
        """Half of all responses pass, by their names."""
        if self.serial:
            step = int(key.split("/")[1]) // self.trace.prompts
            whole = self._whole.setdefault(step, asyncio.Event())
            self._arrived[step] = self._arrived.get(step, 0) + 1
            if self._arrived[step] == self.trace.prompts * self.trace.group:
                whole.set()
            await whole.wait()
        if response == CUT_OFF:
            return Outcome(0.0, "no_code", 0.0, attempts=0)
        async with self._slots:
            await asyncio.sleep(self.trace.judge_seconds * self.second)
        passed = derive_seed(0, "verdict", key) % 2 == 0
        return Outcome(float(passed), "passed" if passed else "wrong_answer", self.trace.judge_seconds)


@dataclass
class ModelLearner:
    """Takes its time by the tokens of a batch."""

    trace: Trace
    second: float
    mean: float
    busy: float = 0.0
    """The model's seconds that it has trained."""

    async def train(self, batch: Batch) -> Mapping[str, float]:
        """One step."""
        seconds = self.trace.training_seconds(sum(len(s.generation.output_ids) for s in batch.samples), self.mean)
        await asyncio.sleep(seconds * self.second)
        self.busy += seconds
        return {}

    async def export_weights(self) -> WeightRefs:
        """Nothing."""
        return WeightRefs((), "float32")


def model_problems(count: int) -> list[EncodedProblem]:
    """Problems that nobody looks into."""
    prompt = np.zeros(1, np.int32)
    return [EncodedProblem(Problem(f"p{i}", "model", "", ()), prompt) for i in range(count)]
