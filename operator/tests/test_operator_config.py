"""The operator's configuration file: what is wrong is said with the file and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcoder_operator.config import ConfigError, OperatorConfig, load_config


def test_no_file_means_the_defaults() -> None:
    assert load_config(None) == OperatorConfig()


def test_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    assert load_config(tmp_path / "c.yaml") == OperatorConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: {trianer: x}", r"images\.trianer"),
        ("prices: [{perGpuHour: -1}]", r"prices\.0\.perGpuHour"),
        ("progress: {url: http://plain}", r"progress\.url"),
        ("progress: {authentication: Password}", r"progress\.authentication"),
        ("watchNamespaces: [Ml]", r"watchNamespaces\.0"),
        ("watchNamespaces: [ml, ml]", "name each once"),
        ("{", "not YAML"),
        ("images: 2026-02-30", "not YAML"),
        ("images: !!bool maybe", "not YAML"),
    ],
)
def test_what_cannot_be_used_is_refused_by_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"images: {trainer: \xff}")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "c.yaml")


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
