"""A run's bucket: what opening it costs, and what its server's answers come to."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import broken_tls
import pytest
from botocore.exceptions import (
    BotoCoreError,
    CredentialRetrievalError,
    LoginRefreshRequired,
    PartialCredentialsError,
    ProfileNotFound,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.loaders import JSONFileLoader

from deepcoder_client.errors import StorageError, StorageFault
from deepcoder_client.storage import Bucket, Credentials
from deepcoder_contracts.api.run_spec import S3
from deepcoder_contracts.chain import Missing

KEYS = Credentials("keys", "key", "secret")


def bucket_at(endpoint: str, access: Credentials = KEYS) -> Bucket:
    return Bucket(S3(bucket="runs", endpoint=endpoint), access)


def test_a_second_bucket_parses_no_description_of_s3_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than most requests, and the dashboard opens a bucket for each run."""
    loaded: list[str] = []
    load = JSONFileLoader.load_file

    def noted(self: JSONFileLoader, path: str) -> Any:
        loaded.append(path)
        return load(self, path)

    bucket_at("http://127.0.0.1:1")
    monkeypatch.setattr(JSONFileLoader, "load_file", noted)
    bucket_at("http://127.0.0.1:1")
    assert loaded == []


class Server:
    """Gives every request one answer."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(server.body)))
                self.send_header("Last-Modified", "Fri, 01 May 2026 12:00:00 GMT")
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.bucket = bucket_at(f"http://127.0.0.1:{self.http.server_port}")


def test_every_byte_of_an_object_of_many_pieces_is_hashed(server: Server) -> None:
    server.body = b"".join(number.to_bytes(4, "big") for number in range(700_000))
    assert server.bucket.sha256("weights.bin") == hashlib.sha256(server.body).hexdigest()


@pytest.mark.parametrize(
    ("status", "code", "fault", "told"),
    [
        (404, "NoSuchBucket", StorageFault.NO_BUCKET, "has no bucket runs: is this the server of the run"),
        (403, "SignatureDoesNotMatch", StorageFault.REFUSED, "refuses keys for s3://runs/k"),
        (400, "TeapotError", StorageFault.OTHER, "TeapotError: short and stout"),
    ],
)
def test_an_error_of_the_server_is_told_with_its_kind(
    server: Server, status: int, code: str, fault: StorageFault, told: str
) -> None:
    server.status = status
    server.body = f"<Error><Code>{code}</Code><Message>short and stout</Message></Error>".encode()
    with pytest.raises(StorageError, match=told) as error:
        server.bucket.get("k")
    assert error.value.fault is fault


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UnauthorizedSSOTokenError(), "has expired or is otherwise invalid.*: run `aws sso login --profile train`, or"),
        (SSOTokenLoadError(error_msg="no token"), "no token: run `aws sso login --profile train`, or set AWS_ACCESS"),
        (TokenRetrievalError(provider="sso", error_msg="expired"), "expired: run `aws sso login --profile train`"),
        (LoginRefreshRequired(), "run `aws login --profile train`, or set"),
        (ProfileNotFound(profile="train"), r"profile \(train\) could not be found: set AWS_ACCESS_KEY_ID"),
        (PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), "missing: AWS_SECRET_ACCESS_KEY"),
        (CredentialRetrievalError(provider="custom-process", error_msg="log\nin"), "from custom-process: log in: set"),
    ],
)
def test_credentials_of_ones_own_that_cannot_be_used_are_no_server_that_does_not_answer(
    error: BotoCoreError, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent. A login that has ended is renewed by a command, not by another address of the server."""
    bucket = bucket_at("http://127.0.0.1:1")
    monkeypatch.setenv("AWS_PROFILE", "train")

    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr(bucket._client, "get_object", fails)
    with pytest.raises(StorageError, match=f"^your own credentials cannot be used for s3://runs/k: .*{told}") as caught:
        bucket.get("k")
    assert caught.value.fault is StorageFault.NO_CREDENTIALS
    assert "endpoint" not in str(caught.value)


def test_a_profile_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "trian")
    with pytest.raises(StorageError, match=r"your own credentials cannot be used .*trian"):
        bucket_at("http://127.0.0.1:1", Credentials("your own credentials (AWS_PROFILE)"))


@pytest.mark.parametrize(
    ("message", "region", "told"),
    [
        ("the region 'us-east-1' is wrong; expecting 'eu-west-1'", "eu-west-1", "region of the run to eu-west-1$"),
        ("the region 'us-east-1' is wrong", "", "set checkpoint.s3.region of the run to that of the bucket$"),
        ("a non-empty Access Key must be provided", "", "refuses keys for"),
    ],
)
def test_a_wrong_region_is_told_as_the_setting_of_the_run(server: Server, message: str, region: str, told: str) -> None:
    server.status = 400
    code = f"<Code>AuthorizationHeaderMalformed</Code><Message>{message}</Message>"
    server.body = f"<Error>{code}{f'<Region>{region}</Region>' if region else ''}</Error>".encode()
    with pytest.raises(StorageError, match=told) as error:
        server.bucket.get("k")
    assert error.value.fault is StorageFault.REFUSED


def test_an_object_that_is_not_there_is_missing_and_no_fault_of_the_storage(server: Server) -> None:
    server.status, server.body = 404, b"<Error><Code>NoSuchKey</Code></Error>"
    with pytest.raises(Missing, match="s3://runs/k"):
        server.bucket.get("k")


def test_a_connection_that_tls_gives_up_in_the_middle_of_an_object_is_told(tmp_path: Path) -> None:
    with broken_tls.running(tmp_path) as (endpoint, certificate):
        access = Credentials("keys", "key", "secret", ca=certificate.read_text())
        bucket = Bucket(S3(bucket="runs", endpoint=endpoint), access)
        for read in (bucket.get, bucket.sha256):
            with pytest.raises(StorageError, match="broke off its answer") as error:
                read("k")
            assert error.value.fault is StorageFault.UNREACHABLE


@pytest.mark.parametrize("endpoint", ["http://[::1", "http://[one]", "http://"])
def test_an_endpoint_that_is_no_url_is_told(endpoint: str) -> None:
    with pytest.raises(StorageError, match="is not a URL of an S3 server"):
        Bucket(S3(bucket="runs"), Credentials("keys", "key", "secret"), endpoint)
