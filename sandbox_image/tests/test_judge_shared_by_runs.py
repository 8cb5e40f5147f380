"""A real server that two runs share: the flood of one neither keeps the other out nor costs anybody an answer."""

from __future__ import annotations

import asyncio

from judge_servers import PatientClients, Server, metric, submission

BUSY = "import time\nwhile time.process_time() < 0.1: pass\nprint(input())"
FLOOD, FEW = 40, 3


async def test_run_beside_a_flood_is_let_in_at_once_and_judged_in_its_turn_and_nothing_is_lost(tmp_path):
    with Server(tmp_path, "--slots", "1", "--max-queued", "6") as server:
        flood = PatientClients(server, 240, run="ns/flood/00000001")
        few = PatientClients(server, 240, run="ns/few/00000002")
        bodies = [submission(str(n), BUSY, (str(n), str(n))) for n in range(FLOOD)]
        flooding = asyncio.create_task(flood.judge_all(bodies))
        while not flood.met["verdicts"] or not flood.met["429"]:
            assert not flooding.done()
            await asyncio.sleep(0.01)
        before = flood.met["verdicts"]
        answers = await few.judge_all([submission(str(n), BUSY, ("other", "other")) for n in range(FEW)])
        between = flood.met["verdicts"] - before
        assert [answer["passed"] for answer in answers] == [True] * FEW
        assert few.met["429"] == 0, "there is room for its share, however full the queue"
        assert between <= 2 * FEW + 1, "what was under way, and about one for each of its own"
        assert [answer["passed"] for answer in await flooding] == [True] * FLOOD
        async with server.session() as session:
            assert await metric(session, "deepcoder_sandbox_submissions_total") == FLOOD + FEW
            assert await metric(session, "deepcoder_sandbox_oldest_wait_seconds") == 0
            async with session.get("/v1/capacity") as response:
                assert (await response.json())["oldest_wait_s"] == 0
        assert server.stop() == 0
