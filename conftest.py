"""What holds for the tests of all parts: how hypothesis is set, that every worker collects the same tests, and that
nothing stays in the temporary directory.

Hypothesis fails an example that takes over 200 ms; how long something takes is measured in `benchmarks/`, never here.
Workers whose tests come in another order run nothing at all, and where parameters come from a set the order hangs on
the seed of hashes: `make test` draws one for all workers of a run, which goes no further than them. What tests start
draws its own, as it does for users, or what depends on the order of a set would never be seen.

pytest rewrites the assertions of each test file and keeps the bytecode, as Python does of all that is imported. In a
new clone there is none, and every worker would compile every file. Each worker therefore starts with a share of them
and finds the others' bytecode when it collects. It compiles a file that is not there in time, as without this.

At the end, workers wait for the one that is still in its last test. Tests marked `early`, which take ten seconds and
more, are therefore the first that each worker runs of its share.

Garbage is not looked for while test files are loaded, nor later in what they or a test have loaded, which stays; and a
tenth as often as by default, because Hypothesis is called at each search.

Many tests kill what they start, which then removes neither its folders nor its sockets. So a run of the tests has a
temporary directory of its own, which is removed with all of that. Its name is short, since paths of sockets have to be.
pytest's own folders stay where they are, for who looks into a failure.

Of a worker that ends, pytest-xdist tells which test it was at, but not why: its status and what Ray wrote last are
added. Ray ends a process that is a driver without an exception, and pytest has captured what it said.
"""

from __future__ import annotations

import gc
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import cache_from_source
from itertools import pairwise
from multiprocessing.util import Finalize
from pathlib import Path

import pytest
from _pytest.assertion import rewrite
from hypothesis import settings

_LINES = 10
"""So many of a log of Ray's."""
_OBJECTS = 7000
"""So many new ones before the youngest are searched for garbage; Python's own number is 700."""
_MODULES = 300
"""What a large library, with all that it loads, has at least."""
_loaded = 0

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("PYTHONHASHSEED", None)


def pytest_configure() -> None:
    """Look for no garbage while tests are collected; give this process and all that it starts, workers too, a temporary
    directory that goes with it."""
    gc.disable()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    made = tempfile.mkdtemp(prefix="dc-")
    Path(made).chmod(0o1777)  # some tests start processes of other users
    os.environ["TMPDIR"] = tempfile.tempdir = made
    # Last of all: multiprocessing removes a folder of its own in there at the exit, with a priority of -100.
    Finalize(None, shutil.rmtree, (made,), {"ignore_errors": True}, exitpriority=-1000)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what is `early` at the front of each worker's share; `--dist worksteal` cuts the tests in equal ones."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    bounds = [len(items) * worker // workers for worker in range(workers + 1)]
    for first, end in pairwise(bounds):
        items[first:end] = sorted(items[first:end], key=lambda item: item.get_closest_marker("early") is None)


def pytest_collection_finish() -> None:
    """What has been loaded stays."""
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])
    _freeze()
    gc.enable()


def pytest_runtest_logfinish() -> None:
    """What a test has loaded stays, too."""
    if len(sys.modules) > _loaded + _MODULES:
        gc.collect()
        _freeze()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Write the bytecode of this worker's share of the files."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or sys.dont_write_bytecode:
        return
    tests = [session.config.rootpath / path for path in session.config.getini("testpaths")]
    files = sorted(file for path in tests for file in (*path.rglob("*.py"), *(path.parent / "src").rglob("*.py")))
    for file in files[int(worker.removeprefix("gw")) % workers :: workers]:
        with suppress(OSError):  # a tree that cannot be written to has no bytecode
            if file.name.startswith("test_"):
                _write_test(file, session.config)
            elif not Path(cache_from_source(file)).exists():
                py_compile.compile(str(file), quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report: pytest.TestReport) -> None:
    """Say how the worker ended, and what Ray wrote in its log in the end."""
    process = report.node.gateway._io.popen  # type: ignore[attr-defined]
    try:
        told = [f"{report.longrepr}, with status {process.wait(10)}"]
    except subprocess.TimeoutExpired:
        told = [f"{report.longrepr}, and still runs, though it no longer answers"]
    for log in sorted(Path(tempfile.gettempdir()).glob(f"ray/session_*/logs/python-core-driver-*_{process.pid}.log")):
        told += ["", str(log), *log.read_text(errors="replace").splitlines()[-_LINES:]]
    report.longrepr = "\n".join(told)


def _freeze() -> None:
    global _loaded
    _loaded = len(sys.modules)
    gc.freeze()


def _write_test(file: Path, config: pytest.Config) -> None:
    """As pytest does when it imports a test file; one that cannot be compiled is left for pytest to report."""
    folder = rewrite.get_cache_dir(file)
    target = folder / f"{file.stem}{rewrite.PYC_TAIL}"
    if target.exists() or not rewrite.try_makedirs(folder):
        return
    try:
        digest, code = rewrite._rewrite_test(file, config)
    except (SyntaxError, ValueError):
        return
    rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, digest, target)


@pytest.fixture(scope="session")
def unused_tcp_port_factory() -> Callable[[], int]:
    """pytest-asyncio's, with ports that a server still has after a restart."""
    from free_ports import free_port  # not found where files are collected without this project's settings

    return free_port
