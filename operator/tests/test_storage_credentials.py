"""Credentials are read once for all runs that ask at once, and anew when a minute has passed or they were refused."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from deepcoder_operator.kube import errors
from deepcoder_operator.storage.credentials import CredentialReader
from deepcoder_operator.storage.s3 import StorageProblem


class API:
    def __init__(self) -> None:
        self.asked = 0
        self.there = True

    async def get(self, *_: Any) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.there:
            raise errors.NotFound("no such Secret", 404)
        encoded = base64.b64encode(f"value {self.asked}".encode()).decode()
        return {"data": {"AWS_ACCESS_KEY_ID": encoded, "AWS_SECRET_ACCESS_KEY": encoded}}


async def test_runs_that_ask_at_once_share_one_read() -> None:
    api: Any = API()
    reader = CredentialReader(api, lambda: 0.0)
    found = await asyncio.gather(*(reader.read("ml", "s3") for _ in range(100)))
    assert api.asked == 1
    assert {c.access_key for c in found} == {"value 1"}


async def test_secret_is_read_anew_after_a_minute_and_when_it_was_refused() -> None:
    api: Any = API()
    now = [0.0]
    reader = CredentialReader(api, lambda: now[0])
    for now[0], asked in ((0.0, 1), (59.0, 1), (60.0, 2), (61.0, 2)):
        await reader.read("ml", "s3")
        assert api.asked == asked
    reader.forget("ml", "s3")
    assert (await reader.read("ml", "s3")).access_key == "value 3"


async def test_secret_that_is_not_there_is_said_to_all_and_looked_for_again() -> None:
    api: Any = API()
    api.there = False
    reader = CredentialReader(api, lambda: 0.0)
    answers = await asyncio.gather(*(reader.read("ml", "s3") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(a, StorageProblem) and a.problem.reason == "SecretNotFound" for a in answers)
    assert api.asked == 1
    api.there = True
    assert (await reader.read("ml", "s3")).access_key == "value 2"


async def test_run_that_is_given_up_does_not_take_the_others_read_with_it() -> None:
    api: Any = API()
    reader = CredentialReader(api, lambda: 0.0)
    first, second = (asyncio.create_task(reader.read("ml", "s3")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).access_key == "value 1"
    with pytest.raises(asyncio.CancelledError):
        await first
