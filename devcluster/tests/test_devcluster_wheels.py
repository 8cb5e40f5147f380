"""A wheel that is replaced under its name gets into the images; one that only looks new makes none of them again."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devcluster import wheels
from devcluster.images import ProjectImage, _Builder, describe

WHEEL = "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip is configured to use."""
    folder = tmp_path / "offered"
    folder.mkdir()
    (folder / WHEEL).write_bytes(b"older")
    os.utime(folder / WHEEL, ns=(0, 0))  # else one written in the same moment could have the same time
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / WHEEL


def kept(cache: Path) -> Path:
    folder = wheels.folder(cache)
    assert folder is not None
    return folder / WHEEL


def reference(cache: Path) -> str:
    return describe("operator", "base", wheels.folder(cache)).reference


def test_a_wheel_with_other_content_is_copied_again_and_makes_another_image(tmp_path: Path, offered: Path) -> None:
    first = reference(tmp_path)
    assert kept(tmp_path).read_bytes() == b"older"
    offered.write_bytes(b"newer")  # as long as the other
    assert kept(tmp_path).read_bytes() == b"newer"
    assert reference(tmp_path) != first


def test_no_layer_that_was_built_with_another_wheel_is_used_again(tmp_path: Path, offered: Path) -> None:
    """buildah finds a layer by its command and the arguments of that, and not by what is mounted."""
    asked: list[Mapping[str, str]] = []

    def build(
        dockerfile: Path, context: Path, name: str, arguments: Mapping[str, str], mounts: Mapping[Path, str]
    ) -> None:
        assert mounts == {tmp_path / "wheels": arguments["PIP_FIND_LINKS"]}
        asked.append(arguments)

    builder: Any = object.__new__(_Builder)
    builder.base, builder._home = "base", tmp_path
    builder._buildah = SimpleNamespace(has=lambda reference: True, build=build)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "Dockerfile").touch()
    for content in (b"older", b"older", b"newer"):
        if content != offered.read_bytes():
            offered.write_bytes(content)
        builder.wheels = wheels.folder(tmp_path)
        builder._build(ProjectImage("operator", tmp_path, tmp_path / "Dockerfile", (), "localhost/operator:1"))
    assert asked[0] == asked[1]
    assert asked[0]["UV_FIND_LINKS"] != asked[2]["UV_FIND_LINKS"]


def test_a_wheel_that_was_only_touched_makes_the_same_image(tmp_path: Path, offered: Path) -> None:
    first = reference(tmp_path)
    os.utime(offered, ns=(1, 1))
    assert reference(tmp_path) == first


def test_a_wheel_is_copied_and_read_once(tmp_path: Path, offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, inode = reference(tmp_path), kept(tmp_path).stat().st_ino
    monkeypatch.setattr(wheels, "_digest", lambda wheel: pytest.fail(f"{wheel} was read again"))
    assert reference(tmp_path) == first
    assert kept(tmp_path).stat().st_ino == inode


def test_a_shell_without_the_configuration_makes_the_same_image(
    tmp_path: Path, offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reference(tmp_path)
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert reference(tmp_path) == first
    (tmp_path / "wheels.json").write_text("")  # as a machine that lost its power leaves it
    assert reference(tmp_path) == first


def test_of_two_wheels_with_one_name_the_first_is_kept(
    tmp_path: Path, offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / WHEEL).write_bytes(b"another")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{other} {offered.parent}")
    assert [kept(tmp_path).read_bytes(), kept(tmp_path).read_bytes()] == [b"another", b"another"]


def test_without_wheels_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    assert wheels.folder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
