"""Measures how long a run waits for its first verdict, with a new client of the trainer for each, in a pod of a run.

The time is from creating the client to the verdict: the name of the pool's Service, the connection, the token, the
judge's capacity, the submission, one program on one test. It excludes Python's start and imports, which a trainer has
finished long before its first program.
"""

from __future__ import annotations

FIRST_VERDICTS = """
import asyncio, json, sys, time, uuid
from deepcoder_contracts.judge import JudgeRequest, TestCase
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint
from deepcoder_trainer.judge.connect import open_judge
from deepcoder_trainer.judge.submission import Submission

at = JudgeEndpoint(backend=JudgeBackend.POOL, host=sys.argv[1], token_file="/token/token")

async def first(number):
    run = RunIdentity(namespace="demo", name=f"first-{number}", uid=str(uuid.uuid4()))
    code = "print(int(input()) + 1)"
    request = JudgeRequest(id=f"p:{number}", code=code, tests=[TestCase(input="1", output="2")], deadline_s=60)
    began = time.monotonic()
    async with open_judge(at, run, None, 60.0) as judge:
        beside = asyncio.create_task(judge.run())
        judgement = await judge.judge(Submission(request))
        seconds = time.monotonic() - began
        beside.cancel()
    return judgement.response is not None and judgement.response.passed, seconds

async def main():
    return [await first(number) for number in range(int(sys.argv[2]))]

results = asyncio.run(main())
print(json.dumps({"passed": [r[0] for r in results], "seconds": sorted(r[1] for r in results)}))
"""
