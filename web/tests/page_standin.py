"""The page before a server that does as it is told: the real scripts and documents of the real views, no cluster.

It plays what a browser must bear: answers that are held back or refused, streams that end, runs of ten thousand steps.
Everything is set from the test's thread, the server has one of its own.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_web import views
from deepcoder_web.app import HEADERS, STATIC

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"
TOKEN = "good"
NAMESPACE = "team"
BEAT_SECONDS = 0.2
HOLD_SECONDS = 60.0
"""A test that never lets go does not keep the server for ever."""

PROVENANCE = {
    "storage": "s3://b/team/demo",
    "configDigest": f"sha256:{'0' * 64}",
    "image": "trainer",
    "model": "hf://agentica-org/DeepScaleR-1.5B-Preview",
    "operatorVersion": "0",
}
"""What every run here was made from."""

Document = dict[str, Any]


class Standin:
    """What is served, what was asked, and what is done to it."""

    def __init__(self) -> None:
        self.url = ""
        self.problem: str | None = None
        self.steps: dict[str, list[Step]] = {"demo": trained(0, 30)}
        self.sample_steps: list[Document] = [{"stage": "short", "step": step} for step in range(1, 31)]
        self.pool: Document | None = None
        """The SandboxPool of every run, as the API server would have it."""
        self.rows: list[Document] = []
        """More lines of the list of runs."""
        self.digest = "sha256:" + "a" * 64
        self.unfinished = 0
        """How many times the chain is not checked to its end."""
        self.attempts: list[Document] = []
        self.damaged: list[str] = []
        """Evaluations that cannot be read."""
        self.reported = datetime.now(UTC)
        """When every run's trainer has reported last."""
        self.usage: Document = {}
        self.refused: dict[str, tuple[int, dict[str, str]]] = {}
        """End of a path (without its query) to status and headers."""
        self.asked: list[str] = []
        """Paths with their queries, below /api/v1/."""
        self.streams: set[asyncio.Event] = set()
        self._held: dict[str, asyncio.Event] = {}
        self._loop = asyncio.new_event_loop()

    def change(self) -> None:
        """Tell every stream that something has changed."""
        self._loop.call_soon_threadsafe(lambda: [event.set() for event in self.streams])

    def hold(self, path: str) -> None:
        """Answer nothing under a path that ends so."""
        self._held[path] = asyncio.Event()

    def release(self, path: str) -> None:
        """Answer what was held, and all that comes."""
        self._loop.call_soon_threadsafe(self._held.pop(path).set)

    def count(self, path: str) -> int:
        """Questions whose path, without the query, ends so."""
        return sum(asked.partition("?")[0].endswith(path) for asked in list(self.asked))

    def run(self, name: str) -> DeepCoderRun:
        """As the API server would have it."""
        done = len(self.steps.get(name, []))
        latest = {"uri": "s3://b/c", "digest": self.digest, "stage": "short", "step": 1, "ordinal": 1}
        status = {
            "phase": "Running",
            "ordinal": 1,
            "gpus": 8,
            "currentStage": {"name": "short", "index": 0, "contextTokens": 48, "ordinal": 1},
            "progress": {"step": done, "maxSteps": 20000, "display": f"{done}/20000", "time": self.reported},
            "usage": self.usage,
            "provenance": PROVENANCE,
            "latestCheckpoint": latest | {"committedTime": "2026-01-01T00:00:00Z"},
        }
        meta = {
            "namespace": NAMESPACE,
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        spec = yaml.safe_load(EXAMPLE.read_text())["spec"]
        return DeepCoderRun.model_validate({"metadata": meta, "spec": spec, "status": status})

    def _lineage(self) -> Document:
        unfinished = self.unfinished > 0
        self.unfinished -= unfinished
        nodes = [_node(self.digest)]
        return {"nodes": nodes, "problem": None, "unfinished": unfinished, "checked": "2026-01-01T00:00:00Z"}

    def application(self) -> web.Application:
        """The routes of the API, and the page itself."""
        below: dict[str, Callable[[str, web.Request], Document]] = {
            "": lambda name, _: views.run_page(self.run(name), datetime.now(UTC)) | {"problem": self.problem},
            "/attempts": lambda name, _: {"attempts": self.attempts},
            "/steps": lambda name, request: columns(self.steps[name], request.query.get("after", "")),
            "/samples/steps": lambda name, _: {"steps": self.sample_steps},
            "/samples": lambda name, request: _samples(request),
            "/samples/one": lambda name, request: _one(request),
            "/lineage": lambda name, _: self._lineage(),
            "/evaluations": lambda name, _: {"evaluations": [], "comparisons": [], "damaged": self.damaged},
            "/pool": lambda name, _: views.pool_document(self.pool),
        }
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", _index),
                web.static("/static", STATIC),
                web.get("/api/v1/me", _answered(lambda request: {"user": "jane"})),
                web.get("/api/v1/runs", _answered(lambda request: self._list())),
                web.get("/api/v1/stream", self._stream),
                *(
                    web.get(
                        f"/api/v1/runs/{NAMESPACE}/{{name}}{end}",
                        _answered(lambda request, answer=answer: answer(request.match_info["name"], request)),
                    )
                    for end, answer in below.items()
                ),
            ]
        )
        return app

    def _list(self) -> Document:
        rows = [views.run_row(self.run(name)) for name in sorted(self.steps)]
        return {"runs": rows + self.rows, "problem": self.problem}

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path.startswith("/api/v1/"):
            self.asked.append(request.path_qs.removeprefix("/api/v1/"))
            held = next((event for path, event in list(self._held.items()) if request.path.endswith(path)), None)
            if held is not None:
                await asyncio.wait_for(held.wait(), HOLD_SECONDS)
            status, headers = next(
                (r for path, r in list(self.refused.items()) if request.path.endswith(path)), (200, {})
            )
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, headers = 401, {}
            if status != 200:
                return web.json_response({"error": f"refused with {status}"}, status=status, headers=headers)
        response = await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        event = asyncio.Event()
        self.streams.add(event)
        try:
            while True:
                await response.write(b"run\n" if event.is_set() else b"\n")
                event.clear()
                try:
                    await asyncio.wait_for(event.wait(), BEAT_SECONDS)
                except TimeoutError:
                    continue
        except ConnectionError:
            return response
        finally:
            self.streams.discard(event)

    def serve(self, ready: threading.Event, over: asyncio.Event) -> None:
        """Until it is over; the thread's body."""

        async def run() -> None:
            runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = "http://{}:{}".format(*runner.addresses[0][:2])
            ready.set()
            await over.wait()
            await runner.cleanup()

        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(run())
        self._loop.close()

    @contextmanager
    def served(self) -> Iterator[Standin]:
        """While the context lasts."""
        ready, over = threading.Event(), asyncio.Event()
        thread = threading.Thread(target=self.serve, args=(ready, over), name="page stand-in")
        thread.start()
        try:
            if not ready.wait(30):
                raise RuntimeError("the stand-in does not listen")
            yield self
        finally:
            self._loop.call_soon_threadsafe(over.set)
            thread.join(30)


NAMES = (
    "reward_mean",
    "solved_all_ratio",
    "solved_none_ratio",
    "truncated_ratio",
    "no_code_ratio",
    "quarantined_ratio",
    "response_tokens_mean",
    "response_tokens_p95",
    "response_tokens_max",
    "entropy",
    "clipped_low_ratio",
    "clipped_high_ratio",
    "staleness_mean",
    "staleness_max",
    "judge_seconds_mean",
    "grad_norm",
    "grad_norm_max",
    "loss",
    "mismatch_kl",
)
PHASES = ("wait_batch", "train", "sync", "checkpoint")


@dataclass(frozen=True)
class Step:
    """What one step of training has left."""

    number: int

    def metrics(self) -> dict[str, float]:
        """Figures for every chart of the page."""
        return {name: round(0.5 + 0.4 * math.sin(self.number / 50 + i), 5) for i, name in enumerate(NAMES)}

    def seconds(self) -> dict[str, float]:
        """By phase."""
        return {phase: 1.0 + self.number % (i + 2) for i, phase in enumerate(PHASES)}


def trained(first: int, number: int) -> list[Step]:
    """Steps after the first `first` ones."""
    return [Step(at + 1) for at in range(first, first + number)]


def columns(steps: list[Step], after: str) -> Document:
    """As the server sends them: with a cursor that holds, what came since."""
    held = int(after or 0)
    new = steps[held:]
    return {
        "cursor": str(len(steps)),
        "reset": not after,
        "stage": ["short"] * len(new),
        "step": [step.number for step in new],
        "ordinal": [1] * len(new),
        "time": [1.7e9 + 400.0 * step.number for step in new],
        "metrics": _table(NAMES, [step.metrics() for step in new]),
        "phaseSeconds": _table(PHASES, [step.seconds() for step in new]),
    }


def _table(names: tuple[str, ...], rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in names} if rows else {}


def rollouts() -> list[Document]:
    """Of one step; the first was drawn twice, and its first draw was dropped."""
    places = [(0, 0, 0), *((group, 1 if group == 0 else 0, index) for group in range(3) for index in range(4))]
    return [
        {
            "group_id": group,
            "draw": draw,
            "index": index,
            "problem_id": f"problem-{group}",
            "reward": float(draw),
            "verdict": "passed" if draw else "wrong_answer",
            "dropped": (group, draw) == (0, 0),
            "response_tokens": 100 + index,
            "prompt": "Double it.",
            "response": f"draw {draw} of {group}, {index}",
            "finish": "stop",
            "prompt_tokens": 4,
            "limit_tokens": 200,
            "judge_seconds": 0.5,
            "versions": [{"version": 1, "start": 0, "end": 3}],
        }
        for group, draw, index in places
    ]


def _samples(request: web.Request) -> Document:
    return views.sample_rows(rollouts(), request.query.get("verdict", ""), offset=int(request.query["offset"]))


def _one(request: web.Request) -> Document:
    wanted = {name: int(request.query[name]) for name in ("group", "index", "draw") if name in request.query}
    found = [r for r in rollouts() if all(r["group_id" if n == "group" else n] == v for n, v in wanted.items())]
    return views.sample_page(found[-1])


def _node(digest: str) -> Document:
    return {
        "digest": digest,
        "parent": None,
        "stage": "a-stage-of-a-long-name",
        "step": 1200,
        "ordinal": 1,
        "final": False,
        "committed": "2026-01-01T00:00:00Z",
    }


async def _index(request: web.Request) -> web.FileResponse:
    return web.FileResponse(STATIC / "index.html")


def _answered(answer: Callable[..., Document]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(answer(request), headers={"Cache-Control": "no-store"})

    return handle
