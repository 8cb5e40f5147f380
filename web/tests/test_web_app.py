"""The page's refusals: whom it tells what, how it says to come again, and when a stream ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from web_fakes import World, bearer, object_of, run_of, until

from deepcoder_client.errors import StorageError, StorageFault
from deepcoder_web import app, runs
from deepcoder_web.access import ALLOWED_SECONDS
from deepcoder_web.run_folders import NotAllowed
from deepcoder_web.storage_threads import Busy, Late

RUN = "/api/v1/runs/team/demo"


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(world.dashboard.application())) as client:
        yield client


async def answer(client: TestClient[Any, Any], path: str, token: str = "jane") -> tuple[int, dict[str, Any]]:
    response = await client.get(path, headers=bearer(token))
    return response.status, await response.json()


class Failing:
    """A storage whose every answer is this."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        async def ask(*_: Any) -> Any:
            raise self.error

        return ask


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (Busy("come again"), 503, "come again"),
        (Late("not answered in 60 s"), 502, "60 s"),
        (NotAllowed("http://x is not among the endpoints that the operator allows"), 502, "operator allows"),
        (StorageError("s3://b at http://10.0.0.1: Code: <secret page>"), 502, "cannot be used"),
        (StorageError("refuses Secret keys: use AWS_PROFILE", StorageFault.REFUSED), 502, "refuses the credentials"),
        (RuntimeError("oh"), 500, "its log says why"),
    ],
)
async def test_a_storage_that_cannot_be_read_is_told_by_the_kind_of_its_fault(
    error: Exception, status: int, says: str
) -> None:
    world = World(storage=Failing(error))
    world.add(run_of())
    async with serving(world) as client:
        response = await client.get(f"{RUN}/steps", headers=bearer())
        text = (await response.json())["error"]
    assert (response.status, says in text) == (status, True), text
    assert ("Retry-After" in response.headers) == (status == 503)
    for never in ("AWS_", "10.0.0.1", "<secret page>", "Secret keys"):
        assert never not in text


async def test_while_the_api_server_is_away_nobody_is_shown_anything_and_all_are_told_to_come_again() -> None:
    world = World()
    world.add(run_of())
    async with serving(world) as client:
        assert (await answer(client, "/api/v1/runs"))[0] == 200
        world.server.away, world.now = True, ALLOWED_SECONDS
        response = await client.get("/api/v1/runs", headers=bearer())
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert (await answer(client, RUN))[0] == 503
        world.server.away = False
        assert (await answer(client, "/api/v1/runs"))[0] == 200


async def test_whoever_may_list_everywhere_is_asked_about_once() -> None:
    world = World("")
    for number in range(300):
        world.add(run_of(namespace=f"team-{number}"))
    async with serving(world) as client:
        assert len((await answer(client, "/api/v1/runs"))[1]["runs"]) == 300
    assert [plural for plural, _ in world.server.reviews] == ["tokenreviews", "subjectaccessreviews"]


async def test_a_list_over_many_namespaces_waits_for_its_answers_and_not_for_its_turn() -> None:
    """All reviews together may take longer than one may: asked all at once, the last would be given up in the queue."""
    world = World(*(f"team-{number}" for number in range(0, 200, 2)))
    for number in range(200):
        world.add(run_of(namespace=f"team-{number}"))
    pause, queued = threading.Event(), []

    def hold(plural: str) -> None:
        pause.wait(0.02)
        queued.append(world.dashboard._threads._work_queue.qsize())

    world.server.hold = hold
    async with serving(world) as client:
        status, document = await answer(client, "/api/v1/runs")
    assert (status, len(document["runs"])) == (200, 100)
    assert len(queued) > 200
    assert max(queued) <= app._LISTS_AT_ONCE < app._REVIEWS_AT_ONCE, "there is a thread for each that is asked"


async def test_tokens_that_prove_nothing_keep_nobody_waiting_who_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.add(run_of())
    monkeypatch.setattr(app, "_STRANGERS_WAITING", 6)
    go_on = threading.Event()
    async with serving(world) as client:
        assert (await answer(client, RUN))[0] == 200
        before = len(world.server.reviews)
        world.server.hold = lambda plural: go_on.wait(60) and None if plural == "tokenreviews" else None
        flood = [asyncio.create_task(answer(client, RUN, f"made-up-{n}")) for n in range(6)]
        await until(lambda: world.dashboard._strangers == 6, "six strangers wait")
        assert (await answer(client, RUN))[0] == 200, "jane is remembered"
        assert (await answer(client, RUN, "one-too-many"))[0] == 503
        await until(lambda: len(world.server.reviews) >= before + app._STRANGERS_AT_ONCE, "some are asked about")
        assert len(world.server.reviews) == before + app._STRANGERS_AT_ONCE
        go_on.set()
        assert {status for status, _ in await asyncio.gather(*flood)} == {401}


async def test_streams_are_counted_by_user_whatever_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(app, "STREAMS_OF_ONE", 1)
    async with serving(world) as client:
        first = await client.get("/api/v1/stream", headers=bearer("jane"))
        second = await client.get("/api/v1/stream", headers=bearer("jane-again"))
        other = await client.get("/api/v1/stream", headers=bearer("stranger"))
        assert (first.status, second.status, other.status) == (200, 429, 200)
        assert "Retry-After" in second.headers
        first.close()
        other.close()
        await until(lambda: not world.dashboard._streams, "both places are free")
        again = await client.get("/api/v1/stream", headers=bearer("jane-again"))
        assert again.status == 200
        again.close()


async def test_all_streams_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STREAMS_OF_ALL", 1)
    async with serving(World()) as client:
        first = await client.get("/api/v1/stream", headers=bearer("jane"))
        other = await client.get("/api/v1/stream", headers=bearer("stranger"))
        assert (first.status, other.status) == (200, 429)
        first.close()


async def test_whether_a_run_may_be_seen_is_asked_by_its_name() -> None:
    """A Role may name single runs."""
    world = World()
    world.add(run_of())
    async with serving(world) as client:
        response = await client.get(RUN, headers=bearer())
        assert (response.status, response.headers["Cache-Control"]) == (200, "no-store"), "it is for this viewer alone"
    about = world.server.reviews[-1][1]["resourceAttributes"]
    assert (about["verb"], about["namespace"], about["name"]) == ("get", "team", "demo")


async def test_a_token_that_is_no_text_is_refused_as_any_other() -> None:
    async with serving(World()) as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(
            b"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
        )
        async with asyncio.timeout(60):
            assert b" 401 " in (await reader.readline())
        writer.close()


async def test_a_namespace_that_cannot_be_watched_is_told_to_those_who_may_list_it_alone() -> None:
    """It may have been deleted for good: its name is nobody else's business, and what others see is not old."""
    world = World("team", "other")
    for namespace in ("team", "third"):
        world.add(run_of(namespace=namespace))
    world.runs._problems = {"other": "runs cannot be watched: other is gone"}
    async with serving(world) as client:
        assert (await answer(client, "/api/v1/runs"))[1]["problem"] == "runs cannot be watched: other is gone"
        assert (await answer(client, "/api/v1/runs", "stranger"))[1] == {"runs": [], "problem": None}
        world.runs._problems = {"third": "runs cannot be watched: third is gone"}
        assert (await answer(client, "/api/v1/runs"))[1]["problem"] is None


async def test_runs_that_change_all_the_time_are_told_of_once_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line makes a page load the whole list."""
    monkeypatch.setattr(app, "PAUSE_SECONDS", 3600.0, raising=False)
    world = World()
    async with serving(world) as client:
        stream = await client.get("/api/v1/stream", headers=bearer())
        assert await stream.content.readline() == b"\n"
        world.add(run_of(version="1"))
        assert await stream.content.readline() == b"runs\n"
        world.add(run_of(version="2"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await stream.content.readline()
        stream.close()


async def test_what_changes_in_the_pause_is_told_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PAUSE_SECONDS", 0.05)
    world = World()
    async with serving(world) as client:
        stream = await client.get("/api/v1/stream", headers=bearer())
        assert await stream.content.readline() == b"\n"
        for version in ("1", "2", "3"):
            world.add(run_of(version=version))
            async with asyncio.timeout(60):
                assert await stream.content.readline() == b"runs\n"
        stream.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BEAT_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
async def test_a_stream_ends_when_its_viewer_has_left_the_group_that_might_read() -> None:
    world = World()
    world.add(run_of())
    async with serving(world) as client:
        response = await client.get("/api/v1/stream?namespace=team&name=demo", headers=bearer())
        assert await response.content.readline() == b"\n"
        world.server.members = set()
        world.now = ALLOWED_SECONDS
        async with asyncio.timeout(60):
            assert set(await response.content.read()) <= {ord("\n")}


@pytest.mark.usefixtures("quick")
async def test_a_stream_of_a_run_that_is_deleted_ends() -> None:
    world = World()
    run = run_of()
    world.add(run)
    async with serving(world) as client:
        response = await client.get("/api/v1/stream?namespace=team&name=demo", headers=bearer())
        world.remove(run)
        async with asyncio.timeout(60):
            await response.content.read()


@pytest.mark.usefixtures("quick")
async def test_a_stream_ends_while_the_api_server_is_away_and_comes_back_with_it() -> None:
    world = World()
    world.add(run_of())
    async with serving(world) as client:
        response = await client.get("/api/v1/stream", headers=bearer())
        world.server.away, world.now = True, ALLOWED_SECONDS
        async with asyncio.timeout(60):
            await response.content.read()
        assert (await client.get("/api/v1/stream", headers=bearer())).status == 503
        world.server.away = False
        again = await client.get("/api/v1/stream", headers=bearer())
        assert again.status == 200
        again.close()


async def test_whoever_follows_is_woken_when_the_watch_breaks() -> None:
    world = World()
    world.add(run_of())
    async with serving(world) as client:
        one = await client.get("/api/v1/stream?namespace=team&name=demo", headers=bearer())
        all_of_them = await client.get("/api/v1/stream", headers=bearer("stranger"))
        for stream in (one, all_of_them):
            assert await stream.content.readline() == b"\n"
        world.runs._fail(None, StorageError("it is away"))
        async with asyncio.timeout(60):
            assert (await one.content.readline(), await all_of_them.content.readline()) == (b"run\n", b"runs\n")
        assert "it is away" in (await answer(client, RUN))[1]["problem"]
        assert "it is away" in (await answer(client, "/api/v1/runs"))[1]["problem"]
        one.close()
        all_of_them.close()


async def test_a_run_that_cannot_be_read_is_a_row_that_says_so_and_its_page_too() -> None:
    world = World()
    world.add(run_of())
    strange = runs._read(object_of("strange", future=True) | {"status": {"phase": "Running"}})
    world.runs._take("ADDED", strange)
    async with serving(world) as client:
        _, document = await answer(client, "/api/v1/runs")
        first, second = document["runs"]
        assert (first["name"], second["name"], second["phase"]) == ("demo", "strange", "Running")
        assert second["unreadable"] is True
        assert "spec.future" in second["message"]
        assert set(first) <= set(second), "the page finds every field"
        status, refusal = await answer(client, "/api/v1/runs/team/strange")
        assert (status, "spec.future" in refusal["error"]) == (422, True)
        assert (await answer(client, "/api/v1/runs/team/strange", "stranger"))[0] == 403


async def test_one_draw_of_a_rollout_or_a_page_of_them_may_be_asked_for() -> None:
    asked: list[Any] = []

    class Storage:
        async def sample(self, run: Any, *about: Any) -> dict[str, Any]:
            asked.append(about)
            return {}

        samples = sample

    world = World(storage=Storage())
    world.add(run_of())
    stage = run_of().spec.stages[0].name
    path = f"{RUN}/samples/one?stage={stage}&step=3&group=1&index=2"
    async with serving(world) as client:
        assert (await answer(client, path))[0] == 200
        assert (await answer(client, f"{path}&draw=0"))[0] == 200
        for wrong in ("last", "-1", "9" * 5000):
            assert (await answer(client, f"{path}&draw={wrong}"))[0] == 400
        assert (await answer(client, path.replace(stage, "tall")))[0] == 400
        page = f"{RUN}/samples?stage={stage}&step=3"
        assert (await answer(client, page))[0] == 200
        assert (await answer(client, f"{page}&offset=500"))[0] == 200
        assert (await answer(client, f"{page}&offset=-1"))[0] == 400
    assert asked[:2] == [(stage, 3, (1, 2), None), (stage, 3, (1, 2), 0)]
    assert asked[2:] == [(stage, 3, "", "group", 0), (stage, 3, "", "group", 500)]


async def test_a_run_that_was_deleted_and_made_again_is_the_new_one_and_its_stream_goes_on() -> None:
    world = World()
    old = run_of()
    metadata = old.metadata.model_copy(update={"uid": "another"})
    new = old.model_copy(update={"metadata": metadata})
    world.add(old)
    async with serving(world) as client:
        stream = await client.get("/api/v1/stream?namespace=team&name=demo", headers=bearer())
        assert await stream.content.readline() == b"\n"
        world.remove(old)
        world.add(new)
        world.remove(old)
        async with asyncio.timeout(60):
            assert await stream.content.readline() == b"run\n"
        assert (await answer(client, RUN))[1]["uid"] == "another"
        stream.close()
