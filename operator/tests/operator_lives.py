"""Lives of one operator, each behind a proxy of its own, so that one can end between any two of its writes.

A life that has ended is cut off from the API server at once and for good; what its tasks still do on their way out
reaches nobody. The next life begins with nothing but what is in the API server and the bucket, as a new process does,
in a tenth of the time that a process takes; where that is to be shown, too, a life is a process that gets SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from faulty_api import Faulty, Side, Write, faulty_api, faulty_s3, kubeconfig_through
from loop_world import Cluster
from operator_template import Running

from deepcoder_operator.app import Operator
from deepcoder_operator.config import OperatorConfig
from deepcoder_operator.kube.client import Kube

END_SECONDS = 20.0


@dataclass
class Life:
    """One operator, from its beginning to its end at one of its writes, or at the test's."""

    proxy: Faulty
    dies_at: Callable[[Write], Side | None]
    task: asyncio.Task[None] | None = None
    process: Running | None = None
    died: Write | None = None
    """The write that it dies at; it may still be under way."""
    ended: bool = False

    @property
    def over(self) -> bool:
        """Killed, or ended by itself, as an operator does that could not keep its lease: a kubelet begins another."""
        alone = self.process is not None and self.process.returncode is not None
        return self.ended or alone or (self.task is not None and self.task.done())

    def decide(self, write: Write) -> Side | None:
        """Whether it ends here; it does once."""
        side = None if self.died else self.dies_at(write)
        if side is not None:
            self.died = write
        return side

    def end(self) -> None:
        """Kill it: nothing of it reaches anybody from here on."""
        self.proxy.go_dark()
        if self.task is not None:
            self.task.cancel()
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        self.ended = True


@dataclass
class Lives:
    """One operator after the other in one namespace."""

    site: Cluster
    s3: Faulty
    stack: AsyncExitStack
    processes: bool = False
    """Whether lives are processes of their own."""
    all: list[Life] = field(default_factory=list)

    @property
    def proxy(self) -> Faulty:
        """Before the operator that began last."""
        return self.all[-1].proxy

    @property
    def labels(self) -> list[str]:
        """What all lives together wrote, each step once, in order."""
        writes = [w.label for proxy in (*[life.proxy for life in self.all], self.s3) for w in proxy.writes]
        return list(dict.fromkeys(writes))

    async def begin(self, dies_at: Callable[[Write], Side | None] = lambda write: None) -> Life:
        """Begin a life; it ends at the first write for which `dies_at` names a side."""
        proxy = await self.stack.enter_async_context(faulty_api(self.site.kubeconfig))
        life = Life(proxy, dies_at)
        self.all.append(life)
        path = self.site.directory / f"life-{len(self.all)}.kubeconfig"
        kubeconfig_through(self.site.kubeconfig, proxy, path)
        for server in (proxy, self.s3):
            server.dies_at, server.on_death = life.decide, life.end
        if self.processes:
            await self.site.kill_operator()
            one = replace(self.site, kubeconfig=path)
            await one.start_operator()
            life.process = self.site.process = one.process
            return life
        os.environ["KUBECONFIG"], os.environ["POD_NAME"] = str(path), self.site.identity
        config = self.site.account.config | {"healthPort": 0, "images": {"trainer": "trainer:1"}}
        config["progress"] |= {"url": f"https://localhost:{self.site.port}", "port": 0}
        life.task = asyncio.create_task(_live(OperatorConfig.model_validate(config)))
        return life

    async def keep(self) -> None:
        """Begin a life whenever the last one is over, as a kubelet does: a busy machine may cost one its lease."""
        while True:
            if not self.all or self.all[-1].over:
                await self.begin()
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """End the last life and see all of them out."""
        tasks = [life.task for life in self.all if life.task]
        for life in self.all:
            life.end()
        if tasks:
            await asyncio.wait(tasks, timeout=END_SECONDS)


async def _live(config: OperatorConfig) -> None:
    kube = await Kube.connect()
    try:
        with suppress(Exception):  # a life that ended fails at whatever it was at
            await Operator(config, kube).run(asyncio.Event())
    finally:
        await kube.close()


@asynccontextmanager
async def lives_in(site: Cluster, *, processes: bool = False) -> AsyncIterator[Lives]:
    """Lives of an operator in a namespace; none has begun. Its S3 server is reached through a proxy."""
    kept = {name: os.environ.get(name) for name in ("KUBECONFIG", "POD_NAME")}
    async with AsyncExitStack() as stack:
        s3 = await stack.enter_async_context(faulty_s3(site.s3.endpoint))
        lives = Lives(site, s3, stack, processes)
        try:
            yield lives
        finally:
            await lives.close()
            for name, value in kept.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@asynccontextmanager
async def kept_alive(site: Cluster) -> AsyncIterator[Lives]:
    """An operator in a namespace, begun again whenever it ends."""
    async with lives_in(site) as lives:
        kubelet = asyncio.create_task(lives.keep())
        try:
            yield lives
        finally:
            kubelet.cancel()
            with suppress(asyncio.CancelledError):
                await kubelet
