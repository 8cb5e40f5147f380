"""The demo's model and problems: made once, cached by the code that made them, and uploaded to the run's bucket.

`deepcoder-trainer make-demo` is deterministic, so its output is cached under a digest of the code that makes it. Files
are uploaded with their SHA-256, which the server checks. A file that already exists with the same digest is skipped. If
the server refuses or does not answer, UploadFailed says what to look at.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import shutil
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deepcoder_demo.commands import run
from deepcoder_demo.settings import REPOSITORY, S3Access, tool

PREFIX = "demo"
"""Where examples/demo.yaml expects model and problems in the bucket."""

MAKE_SECONDS = 900
"""Deadline of make-demo, which takes two minutes on two idle cores and more during the builds."""


class UploadFailed(Exception):
    """The demo's files could not be uploaded; the message says what to check."""


def made_by() -> str:
    """Digest of the code that determines what make-demo writes."""
    source = REPOSITORY / "trainer_image/src/deepcoder_trainer/demo"
    digest = hashlib.sha256((REPOSITORY / "constraints/trainer-cpu.txt").read_bytes())
    for path in sorted(source.rglob("*.py")):
        digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def make(cache: Path) -> Path:
    """Folder with `model/`, `train.jsonl` and `heldout.jsonl`; made if it is not cached."""
    folder = cache / "demo" / made_by()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            run([tool("deepcoder-trainer"), "make-demo", "--output", partial], seconds=MAKE_SECONDS)
            partial.rename(folder)
    return folder


def upload(folder: Path, access: S3Access) -> int:
    """Put everything below `folder` into the bucket; returns the number of files that had to be sent."""
    s3 = boto3.client(
        "s3",
        endpoint_url=access.host_endpoint,
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        aws_session_token=access.session_token or None,
        region_name=access.region,
        config=Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 5}, s3={"addressing_style": "path"}),
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        return sum(_put(s3, access.bucket, f"{PREFIX}/{path.relative_to(folder).as_posix()}", path) for path in files)
    except (ClientError, BotoCoreError) as error:
        raise UploadFailed(
            f"the demo's files cannot be put into bucket {access.bucket} at {access.host_endpoint}: {error}. "
            f"{advice(error)}"
        ) from error


def advice(error: ClientError | BotoCoreError) -> str:
    """What to check after an error of the S3 client; `make down` renews a server of devcluster's."""
    status = error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else None
    if status in (401, 403):
        return (
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (of temporary keys) and AWS_REGION, and "
            "the rights of these keys"
        )
    if status in (301, 404):
        return "Check DEEPCODER_S3_BUCKET: the demo does not create a bucket"
    return (
        "Check that this machine reaches it: DEEPCODER_S3_HOST_ENDPOINT is its URL from here. "
        "If it is devcluster's: make down, then make demo"
    )


def _put(s3: Any, bucket: str, key: str, path: Path) -> bool:
    data = path.read_bytes()
    checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
    try:
        head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        if head.get("ChecksumSHA256") == checksum:
            return False
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
    s3.put_object(Bucket=bucket, Key=key, Body=data, ChecksumSHA256=checksum)
    return True
