"""Several samplers behind one interface: the least loaded gets the next request, and requests of a dead one move on.

The group holds the newest weights, so a replacement sampler gets them before its first request. A request moves at most
`MOVES` times. A sampler is replaced at most `REPLACEMENTS` times in a row without a response in between, after growing
pauses. If no sampler is left, or the newest weights are lost for all of them, the error reaches the controller and ends
the attempt, which resumes elsewhere. Weights that the learner sends from GPU to GPU come only once. A replacement then
waits for the next version, and if no other sampler has the newest one, that also ends the attempt.

A response is never assembled from two samplers: a request that moves is sampled again. A sampler counts as hung if it
returns no response to anyone for longer than its longest response can take, or for most of the time after which the
stage counts as stalled. As long as any response comes back, its internal queue moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.sampler.errors import WeightsLost
from deepcoder_trainer.types import Generation, GenerationRequest, Wave, WeightRefs

log = logging.getLogger(__name__)

MOVES = 3
"""Samplers one request may lose before the loss is the caller's."""
REPLACEMENTS = 4
"""Times in a row that a sampler is replaced before one of them has answered a request; then its place stays empty."""
PAUSE_SECONDS = 5.0
"""Pause before the second replacement in a row; it doubles with each further one."""
START_SECONDS = 900.0
"""Longest time a sampler may take to start, its node's arrival included."""
UPDATE_SECONDS = 600.0
"""Longest time one weight update may take; a sampler that takes longer is given up."""
SILENT_SECONDS = 600.0
"""Longest time in which no response comes back from a sampler that has requests, besides `TOKEN_SECONDS` a token."""
TOKEN_SECONDS = 0.25
"""Longest time one token of a response may take on average."""


class Engine(Protocol):
    """One sampler as the group sees it; every call may raise SamplerLost, an update also WeightsLost."""

    async def start(self) -> int | None:
        """Start; called once. Returns the number of CPU threads that it computes with, None on a GPU."""
        ...

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response."""
        ...

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        """Load new weights."""
        ...

    async def sleep(self) -> None:
        """Give the device to the learner."""
        ...

    async def wake(self) -> None:
        """Take it back."""
        ...

    async def close(self) -> None:
        """End it, dead or alive."""
        ...


@dataclass
class _Member:
    engine: Engine
    number: int
    longest_silence: float
    losses: int = 0
    """Samplers in its place that were lost before it without having answered."""
    load: int = 0
    """Tokens that were asked of it and have not come back."""
    version: int | None = None
    answered_at: float = 0.0
    """Loop time of its last response."""
    threads: int | None = None
    """CPU threads that it computes with."""

    @property
    def name(self) -> str:
        """What it and the learner call it; no other ever has it."""
        return f"sampler-{self.number}"

    async def generate(self, request: GenerationRequest) -> Generation:
        """Its response; raises `SamplerLost` when the engine died, or has answered nothing for too long."""
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
    """The `Sampler` protocol over several engines."""

    make: Callable[[], Engine]
    """Makes an engine that is not started yet."""
    size: int
    clear_cache: bool = False
    """Whether an update in flight recomputes keys and values of what was sampled before it."""
    replacements: int = REPLACEMENTS
    """How often in a row a sampler is replaced. 0 where a learner has the device's memory in turns: a new engine would
    take memory when it is not its turn."""
    longest_silence: float = math.inf
    """Seconds without a response after which a sampler is given up, however long one may take."""
    _members: list[_Member] = field(default_factory=list)
    _replacing: set[asyncio.Task[None]] = field(default_factory=set)
    _weights: tuple[WeightRefs, int] | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _made: int = 0
    _failure: BaseException | None = None
    _unfetchable: WeightsLost | None = None
    """Why nobody can get the newest weights any more."""
    _receiving: bool = False
    """Whether the learner sends weights now."""
    _closed: bool = False
    restarts: int = 0
    """Samplers that were replaced."""
    failed_updates: int = 0
    """Updates of one sampler's weights that failed."""

    async def start(self) -> None:
        """Start all engines at once; raises the first failure."""
        await asyncio.gather(*(self._add() for _ in range(self.size)))

    @property
    def threads(self) -> tuple[int, ...]:
        """CPU threads that each computes with, in the order in which waves are shared out; none on GPUs."""
        return tuple(member.threads for member in self._members if member.threads)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response on the least loaded engine; moves on when that engine dies.

        Requests of a wave go where their position says and never move: which of them share an engine decides the bits.
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
        """A way to ask each engine that has the newest weights, however loaded it is. What it is asked never moves."""

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
        """Load new weights into every engine; those that fail are replaced, and get them when they are up.

        Raises `WeightsLost` when the weights are gone with the learner, `SamplerLost` when no engine can load them.
        """
        self._weights, self._unfetchable = (refs, version), None
        members = list(self._members)
        if refs.send is None:
            await asyncio.gather(*(self._update(member) for member in members))
        else:
            await self._receive(members, refs.send([member.name for member in members]))
        await self._pick()  # at least one has them

    async def _receive(self, members: list[_Member], sending: Awaitable[None]) -> None:
        """Have all load what the learner sends meanwhile; its own failure is raised at once."""
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
        """All engines sleep when it returns; one that does not has been ended, and holds no memory either."""
        await self._in_turn(lambda engine: engine.sleep())
        await asyncio.gather(*self._replacing)

    async def wake(self) -> None:
        """All engines sample again. Raises `SamplerLost` when none does."""
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
        """End all engines."""
        self._closed = True
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(m.engine.close() for m in self._members), return_exceptions=True)
        self._members.clear()

    async def _pick(self) -> _Member:
        """The least loaded engine that has the newest weights (lowest number on a tie); waits for one to be up."""
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
        self._members.sort(key=lambda m: m.number)  # a wave is shared out by place, whoever was up first
        await self._update(member)
        await self._notify()

    async def _update(self, member: _Member, *, sent: bool = False) -> None:
        """Bring it to the newest weights. Those that the learner sends must be on their way, `sent`."""
        while self._weights is not None and member.version != self._weights[1] and member in self._members:
            refs, version = self._weights
            if refs.broadcast is not None and not sent:
                return  # it joins at the next version
            try:
                async with asyncio.timeout(UPDATE_SECONDS):
                    await member.engine.update_weights(refs.to(member.name), version, self.clear_cache)
            except WeightsLost as error:
                self.failed_updates += 1
                if self._weights == (refs, version):
                    self._unfetchable = error
                    await self._notify()
                else:  # newer ones are on their way, but not into an engine that is half updated
                    self._lost(member, error)
                return
            except (SamplerLost, TimeoutError) as error:
                self.failed_updates += 1
                self._lost(member, error)
                return
            member.version = version
            await self._notify()

    def _lost(self, member: _Member, error: BaseException) -> None:
        """Take an engine out and start another in its place; the first of its requests to notice does so."""
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
            if member.losses >= self.replacements:
                log.error("sampler %d is not replaced, after %d that were lost before it", member.number, member.losses)
                return
            if member.losses:
                await asyncio.sleep(PAUSE_SECONDS * 2 ** (member.losses - 1))
            self.restarts += 1
            log.warning("starting another sampler in place of %d", member.number)
            await self._add(member.losses + 1)
        except Exception as error:
            self._failure = error
            log.error("no replacement for sampler %d: %s", member.number, error)
        finally:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._notify()))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def share_of(request: GenerationRequest, wave: Wave, engines: int) -> tuple[int, GenerationRequest]:
    """Which engine a request of a wave goes to, and the request as part of that engine's own, smaller wave."""
    number = wave.position % engines
    size = (wave.size - number + engines - 1) // engines
    return number, replace(request, wave=Wave(wave.name, wave.position // engines, size))


class ActorEngine:
    """A sampler actor as a group member: Ray's errors become SamplerLost."""

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
        """Ask the engine to end, then end its process."""
        import ray

        with contextlib.suppress(Exception):
            async with asyncio.timeout(10):
                await _answer(self._actor.close.remote())
        ray.kill(self._actor, no_restart=True)


async def _answer(reference: Awaitable[Any], *, refusable: bool = False) -> Any:
    """What the actor answers. With `refusable`, a ValueError is the request's own fault and not the engine's."""
    import ray.exceptions

    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, WeightsLost) or (refusable and isinstance(cause, ValueError)):
            raise cause from None
        raise SamplerLost(str(cause)) from error
    except ray.exceptions.RayError as error:  # the actor died, or its node with an answer that was not fetched yet
        raise SamplerLost(str(error)) from error
