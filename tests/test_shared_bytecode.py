"""Workers of one run share the compiling of a new clone's files, and pytest reads what they have written."""

from __future__ import annotations

from importlib.util import cache_from_source
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.assertion import rewrite

FILES = ("part/tests/test_one.py", "part/tests/test_two.py", "part/tests/helper.py", "part/src/module.py")


@pytest.fixture
def session(tmp_path: Path, pytestconfig: pytest.Config) -> Any:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("def test():\n    assert 1 + 1 == 2\n")
    own = {"testpaths": ["part/tests"]}
    config = SimpleNamespace(
        rootpath=tmp_path, stash=pytestconfig.stash, getini=lambda name: own.get(name) or pytestconfig.getini(name)
    )
    return SimpleNamespace(config=config)


def start(session: Any, pytestconfig: pytest.Config, worker: int, patch: pytest.MonkeyPatch) -> set[str]:
    """Start a worker of two; files of which there is bytecode that is read."""
    patch.setattr("sys.dont_write_bytecode", False)
    patch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
    patch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    root: Path = session.config.rootpath
    plugin = pytestconfig.pluginmanager.getplugin(str(pytestconfig.rootpath / "conftest.py"))
    assert plugin is not None
    plugin.pytest_sessionstart(session)
    return {name for name in FILES if is_compiled(root / name)}


def is_compiled(file: Path) -> bool:
    if file.name.startswith("test_"):
        return rewrite._read_pyc(file, rewrite.get_cache_dir(file) / f"{file.stem}{rewrite.PYC_TAIL}") is not None
    return Path(cache_from_source(file)).exists()


def test_each_worker_compiles_a_share_and_together_they_compile_all(
    session: Any, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(session, pytestconfig, 0, monkeypatch)
    assert len(first) == 2
    assert start(session, pytestconfig, 1, monkeypatch) == set(FILES)


def test_a_file_that_cannot_be_compiled_is_left_to_who_imports_it(
    session: Any, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FILES:
        (session.config.rootpath / name).write_text("def (\n")
    assert start(session, pytestconfig, 0, monkeypatch) == set()


def test_a_tree_that_cannot_be_written_to_is_left_as_it_is(
    session: Any, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in {(session.config.rootpath / name).parent for name in FILES}:
        (folder / "__pycache__").write_text("in the way")
    assert start(session, pytestconfig, 0, monkeypatch) == set()
    assert start(session, pytestconfig, 1, monkeypatch) == set()
