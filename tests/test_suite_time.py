"""What is told of a suite's time is what its tests took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "suite_time.py"
BURNS = """
import os, signal, subprocess, sys, time, pytest

@pytest.fixture
def slow():
    time.sleep(0.2)

def test_a_child_burns(slow):
    code = "import time\\nwhile time.process_time() < 0.4: pass"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_waits():
    time.sleep(0.3)

def test_something_burns_that_is_killed_with_its_parent_unasked_for():
    code = "import time\\nwhile time.process_time() < 0.4: pass\\nprint('burnt', flush=True)\\ntime.sleep(60)"
    parent = subprocess.Popen(["sh", "-c", '"$0" -c "$1"; true', sys.executable, code], stdout=subprocess.PIPE,
        start_new_session=True)
    parent.stdout.readline()
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_burns.py").write_text(BURNS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "suite_time", "--junit-xml=all.xml", "test_burns.py"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    subprocess.run(
        command, cwd=folder, env=environment | {"PYTHONPATH": str(SCRIPT.parent)}, check=True, capture_output=True
    )
    return folder / "all.xml"


def told(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_cpu_of_children_and_set_up_are_counted_and_waiting_is_no_cpu(measured: Path) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import suite_time
    finally:
        sys.path.remove(str(SCRIPT.parent))
    [(name, file)] = suite_time.read(measured).items()
    assert (name, file.tests) == ("test_burns", 3)
    account = suite_time.open_account()
    if account is not None:
        suite_time.close_account(account)
    assert file.cpu >= 0.4 + (0.4 if account else 0)
    assert file.setup >= 0.2
    assert file.wall >= 0.2 + 0.4 + 0.3
    assert file.collecting["main"] > 0
    assert {worker for worker, _, _ in file.spans} == {"main"}


def test_the_page_keeps_what_was_written_above_its_figures(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Ours\n\n<!-- measured -->\n\nold figures\n")
    done = told(measured, "--before", measured, "--page", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("# Ours\n\n<!-- measured -->\n\n3 tests in ")
    assert "old figures" not in text
    assert "| test_burns | 3 |" in text
    assert (tmp_path / "page.png").exists()


def test_xml_of_a_run_without_the_plugin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"/></testsuite></testsuites>'
    )
    done = told(tmp_path / "plain.xml")
    assert done.returncode == 1
    assert "was written without `-p suite_time`" in done.stderr
