"""Storage of a run by hand that cannot be used is a wrong configuration, told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcoder_contracts.stage import Storage
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.running.runner import check_storage


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ({"uri": "file:///proc/nowhere"}, "No such file or directory"),
        ({"uri": "file:///dev/null/run"}, "Not a directory"),
        ({"uri": "s3://bucket/run", "endpoint": "http://127.0.0.1:9", "region": "r"}, "no credentials: set AWS_ACCESS"),
    ],
    ids=lambda each: each["uri"] if isinstance(each, dict) else "",
)
def test_what_cannot_be_used_is_named_with_the_mend(
    storage: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials file either
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    settings = Storage.model_validate(storage)
    with pytest.raises(BadConfig, match=rf"storage\.uri {settings.uri} cannot be used \(.*{why}.*name a folder") as e:
        check_storage(settings, open_run_storage(settings))
    assert e.value.field == "storage.uri"


def test_a_folder_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    settings = Storage(uri=f"file://{tmp_path}/of/mine")
    check_storage(settings, open_run_storage(settings))
    assert (tmp_path / "of/mine").is_dir()
