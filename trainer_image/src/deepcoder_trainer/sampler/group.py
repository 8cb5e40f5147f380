"""Several samplers behind one interface: the least loaded gets the next request, and requests of a dead one move on.

The group holds the newest weights, so a replacement sampler gets them before its first request. A request moves at most
`MOVES` times. A sampler is replaced at most `REPLACEMENTS` times in a row without a response in between, after growing
pauses; one that does not start counts, too. If no sampler is left, or the newest weights are lost for all of them, the
error reaches the controller and ends the attempt, which resumes elsewhere. Weights that the learner sends from GPU to
GPU come only once. A replacement then waits for the next version, and if no other sampler has the newest one, that also
ends the attempt.

A response is never assembled from two samplers: a request that moves is sampled again. A sampler counts as hung if it
returns no response to anyone for longer than its longest response can take, or, in a Train stage, for most of the time
after which the stage counts as stalled. As long as any response comes back, its internal queue moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.sampler.errors import WeightsLost
from deepcoder_trainer.sampler.waves import share_of
from deepcoder_trainer.types import Generation, GenerationRequest, WeightRefs

log = logging.getLogger(__name__)

MOVES = 3
"""Number of times that a request moves to another sampler. If that one is lost too, the caller gets the error."""
REPLACEMENTS = 4
"""Number of replacements in a row without a response, after which a sampler's place stays empty."""
PAUSE_SECONDS = 5.0
"""Pause before the second replacement in a row; it doubles with each further one."""
START_SECONDS = 900.0
"""Deadline for a sampler to start, including the arrival of its node."""
UPDATE_SECONDS = 600.0
"""Deadline for one weight update, after which a sampler counts as lost."""
SILENT_SECONDS = 600.0
"""Longest silence of a sampler that has requests, plus `TOKEN_SECONDS` per token of the response limit."""
TOKEN_SECONDS = 0.25
"""Longest average time per token of a response."""


class Engine(Protocol):
    """One sampler of the group. Every call may raise SamplerLost, and an update also WeightsLost."""

    async def start(self) -> int | None:
        """Start; called once. Return the number of CPU compute threads, None on a GPU."""
        ...

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response."""
        ...

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        """Load new weights."""
        ...

    async def sleep(self) -> None:
        """Release the device's memory to the learner."""
        ...

    async def wake(self) -> None:
        """Take the memory back."""
        ...

    async def close(self) -> None:
        """Shut down, whether alive or dead."""
        ...


@dataclass
class _Member:
    engine: Engine
    number: int
    longest_silence: float
    losses: int = 0
    """Number of predecessors in its place that were lost in a row without a response."""
    load: int = 0
    """Sum of the response limits, in tokens, of its outstanding requests."""
    version: int | None = None
    """Version of its weights."""
    answered_at: float = 0.0
    """Loop time of its last response."""
    threads: int | None = None
    """Number of CPU compute threads."""

    @property
    def name(self) -> str:
        """Unique name under which it and the learner form a broadcast group."""
        return f"sampler-{self.number}"

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response. Raises `SamplerLost` if the engine died or has been silent for too long."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        silence = min(SILENT_SECONDS + TOKEN_SECONDS * request.max_tokens, self.longest_silence)
        response = asyncio.ensure_future(self.engine.generate(request))
        self.load += request.max_tokens
        try:
            while not response.done():
                left = max(began, self.answered_at) + silence - loop.time()
                if left <= 0:
                    raise SamplerLost(f"no response of sampler {self.number} within {silence:.0f} s")
                await asyncio.wait({response}, timeout=left)
            generation = response.result()
            self.answered_at = loop.time()
            self.losses = 0
            return generation
        finally:
            self.load -= request.max_tokens
            response.cancel()


@dataclass
class SamplerGroup:
    """Implements the `Sampler` protocol with several engines."""

    make: Callable[[], Engine]
    """Creates an engine without starting it."""
    size: int
    """Number of engines."""
    clear_cache: bool = False
    """Whether an update in flight recomputes the KV cache of tokens that were sampled before it."""
    replacements: int = REPLACEMENTS
    """Number of replacements in a row without a response. 0 if samplers and learner share devices: a new engine would
    take memory during the learner's turn."""
    longest_silence: float = math.inf
    """Upper bound, in seconds, of the silence after which a sampler counts as lost."""
    _members: list[_Member] = field(default_factory=list)
    _replacing: set[asyncio.Task[None]] = field(default_factory=set)
    _weights: tuple[WeightRefs, int] | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _made: int = 0
    _failure: BaseException | None = None
    _unfetchable: WeightsLost | None = None
    """Why no sampler can get the newest weights any more."""
    _receiving: bool = False
    """Whether the learner is sending weights."""
    _closed: bool = False
    restarts: int = 0
    """Number of samplers that were replaced."""
    failed_updates: int = 0
    """Number of failed weight updates, counted per sampler."""

    async def start(self) -> None:
        """Start all engines at once. Raises the first failure."""
        await asyncio.gather(*(self._add() for _ in range(self.size)))

    @property
    def threads(self) -> tuple[int, ...]:
        """CPU compute threads of each engine, in the order in which `share_of` numbers them; empty on GPUs."""
        return tuple(member.threads for member in self._members if member.threads)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response on the least loaded engine. If that engine dies, try another one.

        Requests of a wave are assigned by position and never move, because the result depends, in its last bits, on
        which requests share an engine. Raises `SamplerLost` after `MOVES` moves, or if no engine is left.
        """
        if request.wave is not None:
            members = self._members
            if len(members) != self.size:
                raise SamplerLost(f"a sampler was lost in deterministic mode: {self._failure}")
            number, request = share_of(request, request.wave, self.size)
            return await members[number].generate(request)
        for move in range(MOVES + 1):
            member = await self._pick()
            try:
                return await member.generate(request)
            except SamplerLost as error:
                self._lost(member, error)
                if move == MOVES:
                    raise
        raise AssertionError("unreachable")

    def each(self) -> list[Callable[[GenerationRequest], Awaitable[Generation]]]:
        """Return one function per engine with the newest weights, which samples on that engine only."""

        def asking(member: _Member) -> Callable[[GenerationRequest], Awaitable[Generation]]:
            async def ask(request: GenerationRequest) -> Generation:
                try:
                    return await member.generate(request)
                except SamplerLost as error:
                    self._lost(member, error)
                    raise

            return ask

        return [asking(member) for member in self._ready()]

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        """Load new weights into every engine. Failed engines are replaced, and replacements get the weights when up.

        Returns when at least one engine has them. Raises `WeightsLost` if the weights are lost with the learner, and
        `SamplerLost` if no engine can load them.
        """
        self._weights, self._unfetchable = (refs, version), None
        members = list(self._members)
        if refs.send is None:
            await asyncio.gather(*(self._update(member) for member in members))
        else:
            await self._receive(members, refs.send([member.name for member in members]))
        await self._pick()  # at least one has them

    def release_weights(self) -> None:
        """Let go of the newest weights, so that the object store has room for the next. Replacements wait for those."""
        self._weights = None

    async def _receive(self, members: list[_Member], sending: Awaitable[None]) -> None:
        """Let all members receive what the learner sends. Raises a failure of the learner at once."""
        self._receiving = True
        updates = [asyncio.ensure_future(self._update(member, sent=True)) for member in members]
        sent = asyncio.ensure_future(sending)
        try:
            await asyncio.gather(sent, *updates)
        finally:
            for task in (sent, *updates):
                task.cancel()
            self._receiving = False
            await self._notify()

    async def sleep(self) -> None:
        """Put all engines to sleep. An engine that fails to is closed, so that it does not hold memory either."""
        await self._in_turn(lambda engine: engine.sleep())
        await asyncio.gather(*self._replacing)

    async def wake(self) -> None:
        """Wake all engines. Raises `SamplerLost` if none is left."""
        await self._in_turn(lambda engine: engine.wake())
        await self._pick()

    async def _in_turn(self, change: Callable[[Engine], Awaitable[None]]) -> None:
        async def one(member: _Member) -> None:
            try:
                async with asyncio.timeout(UPDATE_SECONDS):
                    await change(member.engine)
            except (SamplerLost, TimeoutError) as error:
                self._lost(member, error)

        await asyncio.gather(*(one(member) for member in list(self._members)))

    async def close(self) -> None:
        """Shut down all engines."""
        self._closed = True
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(m.engine.close() for m in self._members), return_exceptions=True)
        self._members.clear()

    async def _pick(self) -> _Member:
        """Wait for an engine with the newest weights; return the least loaded one, on a tie that of lowest number.

        Raises `WeightsLost` or `SamplerLost` if there can be none.
        """
        async with self._changed:
            while True:
                if ready := self._ready():
                    return min(ready, key=lambda m: (m.load, m.number))
                if self._unfetchable is not None:
                    raise self._unfetchable
                if self._weights is not None and self._weights[0].broadcast is not None and not self._receiving:
                    raise SamplerLost(f"no sampler that has the newest weights is left: {self._failure}")
                if not self._members and not self._replacing:
                    raise SamplerLost(f"no sampler is left: {self._failure}")
                await self._changed.wait()

    def _ready(self) -> list[_Member]:
        return [m for m in self._members if self._weights is None or m.version == self._weights[1]]

    async def _add(self, losses: int = 0) -> None:
        self._made += 1
        member = _Member(self.make(), self._made, self.longest_silence, losses)
        try:
            async with asyncio.timeout(START_SECONDS):
                member.threads = await member.engine.start()
        except BaseException:
            await member.engine.close()
            raise
        self._members.append(member)
        self._members.sort(key=lambda m: m.number)  # a wave is distributed by position, not by order of start
        await self._update(member)
        await self._notify()

    async def _update(self, member: _Member, *, sent: bool = False) -> None:
        """Load the newest weights into a member. `sent`: the learner is broadcasting them now."""
        while self._weights is not None and member.version != self._weights[1] and member in self._members:
            refs, version = self._weights
            if refs.broadcast is not None and not sent:
                return  # the member gets the next version
            try:
                async with asyncio.timeout(UPDATE_SECONDS):
                    await member.engine.update_weights(refs.to(member.name), version, self.clear_cache)
            except WeightsLost as error:
                self.failed_updates += 1
                if self._weights == (refs, version):
                    self._unfetchable = error
                    await self._notify()
                else:  # there are newer weights, but a half-updated engine cannot load them
                    self._lost(member, error)
                return
            except (SamplerLost, TimeoutError) as error:
                self.failed_updates += 1
                self._lost(member, error)
                return
            member.version = version
            await self._notify()

    def _lost(self, member: _Member, error: BaseException) -> None:
        """Remove an engine and start a replacement. Only the first call per engine has an effect."""
        if member not in self._members or self._closed:
            return
        self._members.remove(member)
        self._failure = error
        log.warning("sampler %d was lost: %s", member.number, error)
        task = asyncio.get_running_loop().create_task(self._replace(member))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, member: _Member) -> None:
        with contextlib.suppress(Exception):
            await member.engine.close()
        try:
            for losses in range(member.losses, self.replacements):
                if losses:
                    await asyncio.sleep(PAUSE_SECONDS * 2 ** (losses - 1))
                self.restarts += 1
                log.warning("starting another sampler in place of %d", member.number)
                try:
                    return await self._add(losses + 1)
                except Exception as error:
                    self._failure = error
                    log.error("the sampler in place of %d did not start: %s", member.number, error)
                    if not self._members:  # nothing samples, so the attempt ends at once
                        return
            log.error("sampler %d is not replaced, after %d in a row that were lost", member.number, self.replacements)
        finally:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._notify()))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class ActorEngine:
    """Wraps a sampler actor as an `Engine`. Ray's errors become SamplerLost."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self) -> int | None:
        """Wait until the engine in the actor is up."""
        threads: int | None = await _answer(self._actor.start.remote())
        return threads

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response in the actor."""
        return await _answer(self._actor.generate.remote(request), refusable=True)

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        """Load new weights in the actor."""
        await _answer(self._actor.update_weights.remote(refs, version, clear_cache))

    async def sleep(self) -> None:
        """Send the engine in the actor to sleep."""
        await _answer(self._actor.sleep.remote())

    async def wake(self) -> None:
        """Wake the engine in the actor."""
        await _answer(self._actor.wake.remote())

    async def close(self) -> None:
        """Shut down the engine within 10 s, then kill its process."""
        import ray

        with contextlib.suppress(Exception):
            async with asyncio.timeout(10):
                await _answer(self._actor.close.remote())
        ray.kill(self._actor, no_restart=True)


async def _answer(reference: Awaitable[Any], *, refusable: bool = False) -> Any:
    """Return the actor's answer. With `refusable`, a ValueError means an invalid request and is raised as it is."""
    import ray.exceptions

    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, WeightsLost) or (refusable and isinstance(cause, ValueError)):
            raise cause from None
        raise SamplerLost(str(cause)) from error
    except ray.exceptions.RayError as error:  # the actor died, or its node before the answer was fetched
        raise SamplerLost(str(error)) from error
