"""What opening a bucket costs."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from deepcoder_client.storage import Bucket, Credentials
from deepcoder_contracts.api.run_spec import S3


def test_a_second_bucket_parses_no_description_of_s3_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than most requests, and the dashboard opens a bucket for each run."""
    loaded: list[str] = []
    load = JSONFileLoader.load_file

    def noted(self: JSONFileLoader, path: str) -> Any:
        loaded.append(path)
        return load(self, path)

    def opened() -> None:
        Bucket(S3(bucket="runs", endpoint="http://127.0.0.1:1"), Credentials("keys", "key", "secret"))

    opened()
    monkeypatch.setattr(JSONFileLoader, "load_file", noted)
    opened()
    assert loaded == []
