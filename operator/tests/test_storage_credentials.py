"""Credentials are read once for all runs that ask at once, and anew when a minute has passed or they were refused."""

from __future__ import annotations

import asyncio
import base64
import errno
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deepcoder_operator.kube import errors
from deepcoder_operator.progress.certificates import renew
from deepcoder_operator.storage import s3
from deepcoder_operator.storage.credentials import CredentialReader
from deepcoder_operator.storage.s3 import Buckets, Credentials, StorageProblem, Target


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


@pytest.mark.parametrize("key", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", ["marked-\nvalue", "marked-value\n", "marked-välue", "marked-\x1b[2Jvalue"])
async def test_key_that_no_header_can_hold_is_refused_by_name_and_not_quoted(key: str, value: str) -> None:
    class Broken(API):
        async def get(self, *_: Any) -> dict[str, Any]:
            values = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", key: value}
            return {"data": {k: base64.b64encode(v.encode()).decode() for k, v in values.items()}}

    api: Any = Broken()
    with pytest.raises(StorageProblem, match=f"{key} of Secret s3 contains a line break") as refusal:
        await CredentialReader(api, lambda: 0.0).read("ml", "s3")
    assert refusal.value.problem.reason == "CredentialsInvalid"
    assert "marked" not in str(refusal.value)


def test_what_a_library_says_of_a_request_that_cannot_be_made_is_not_passed_on() -> None:
    """It quotes the header, hence the token."""
    made = Buckets().open(Target("http://127.0.0.1:9", None, Credentials("a", "b", "marked\nvalue")), "bucket")
    with pytest.raises(StorageProblem, match="cannot be reached") as refusal:
        made.head("key")
    assert "marked" not in str(refusal.value)


def authority() -> str:
    return renew(None, ("s3.example",), datetime.now(UTC)).bundle.decode()


def server(ca: str | None, token: str = "t") -> Target:
    return Target("https://127.0.0.1:9", None, Credentials("a", "b", token, ca, "Secret s3"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("ca", [None, authority()])
def test_credentials_leave_nothing_on_the_disk(ca: str | None, folder: Path) -> None:
    """A killed operator removes nothing."""
    buckets = Buckets()
    opened = buckets.open(server(ca), "bucket")
    with pytest.raises(StorageProblem, match="cannot be reached"):
        opened.head("key")
    assert list(folder.iterdir()) == []


def files(buckets: Buckets) -> list[Path]:
    return [Path(made.authority.path) for made in buckets._clients.values() if made.authority]


def test_rotated_keys_share_the_file_of_their_authority(folder: Path) -> None:
    buckets, ca = Buckets(), authority()
    for token in ("monday", "tuesday", "wednesday"):
        buckets.open(server(ca, token), "bucket")
    assert len(files(buckets)) == 3
    (file,) = set(files(buckets))
    assert file.read_text() == ca


def test_file_of_an_authority_goes_with_the_last_that_uses_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_CLIENTS", 1)
    buckets = Buckets()
    query = buckets.open(server(authority()), "bucket")
    (file,) = files(buckets)
    buckets.open(server(authority()), "bucket")
    assert files(buckets) != [file]
    assert file.exists(), "the query may open another connection"
    del query
    assert not file.exists()


@pytest.mark.parametrize(
    ("ca", "told"),
    [
        ("-----BEGIN CERTIFICATE-----", "ca.crt of Secret s3 is not PEM"),
        ("x" * (512 * 1024 + 1), "ca.crt of Secret s3 has 524289 bytes, and may have 524288"),
    ],
)
def test_authority_that_cannot_be_used_is_refused_by_name(ca: str, told: str) -> None:
    with pytest.raises(StorageProblem, match=told) as refusal:
        Buckets().open(server(ca), "bucket")
    assert refusal.value.problem.reason == "CredentialsInvalid"


def test_authority_for_which_there_is_no_room_is_a_problem_of_its_run_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageProblem, match=r"no room for ca\.crt of Secret s3: restart it \(.*No space left"):
        Buckets().open(server(authority()), "bucket")
