"""Commands start fast: what only one of them reads is loaded by that one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepcoder_cli.exit_codes import Exit

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"

_SLOW_TO_LOAD = """
import signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal, wherever the tests run

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            print("loading", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
from deepcoder_cli.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def test_help_version_and_completion_load_neither_the_client_nor_its_libraries() -> None:
    """A shell starts the program whenever a user presses Tab."""
    code = """
import sys
from deepcoder_cli import __main__, completion
from deepcoder_cli.app import COMMANDS
for words in (["--help"], ["--version"], ["unknown"], *([name, "--help"] for name in COMMANDS)):
    assert __main__.main(words) in (0, 2)
for words in ([""], ["sta"], ["status", "--"], ["status", "-o", ""], ["logs", "demo", ""], ["completion", ""]):
    assert completion.main(words) == 0
libraries = {"botocore", "kubernetes", "pydantic", "rich", "urllib3", "yaml"}
ours = {"deepcoder_client.client", "deepcoder_client.connection", "deepcoder_contracts.api.run"}
print("loaded:", *sorted((libraries | ours) & sys.modules.keys()))
"""
    assert _said(code)[-1] == "loaded:"


def test_a_completion_of_names_loads_no_types_of_runs() -> None:
    code = """
import sys
from deepcoder_cli.completion import main
for words in (["stages", ""], ["approve", "demo", ""], ["status", "-n", ""], ["status", "--context", ""]):
    assert main(["--kubeconfig", "/nowhere", *words]) == 0
print("loaded:", *sorted({"kubernetes", "deepcoder_contracts.api.run", "rich"} & sys.modules.keys()))
"""
    assert _said(code)[-1] == "loaded: kubernetes"


def test_a_command_loads_only_what_it_uses() -> None:
    """A plan reads no cluster, and only a command that reads a bucket or a table loads what these need."""
    code = """
import sys
from deepcoder_cli.__main__ import main
from deepcoder_cli.app import COMMANDS
assert main(["plan", "-f", sys.argv[1]]) == 0
print("loaded:", *sorted({"botocore", "kubernetes", "pyarrow"} & sys.modules.keys()))
for command in COMMANDS.values():
    command.work.function()
print("loaded:", *sorted({"botocore", "numpy", "pandas", "pyarrow"} & sys.modules.keys()))
"""
    said = _said(code, str(DEMO))
    assert [line for line in said if line.startswith("loaded:")] == ["loaded:", "loaded:"]


def _said(code: str, *arguments: str) -> list[str]:
    """Run a program in a Python of its own, and return the lines of its output."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("module", "words"),
    [("click", ["--help"]), ("deepcoder_cli.commands.status", ["status"]), ("kubernetes", ["stages", "demo"])],
    ids=["the program", "a command", "the client"],
)
def test_ctrl_c_while_something_is_loaded_ends_the_program_without_a_word(module: str, words: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_TO_LOAD, module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)
    assert (process.returncode, *said) == (Exit.INTERRUPTED, "", "")


def test_a_closed_pipe_is_not_the_answer_no() -> None:
    """`kubectl deepcoder … | head -0`: a script must not take the exit code for that of a run that failed."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "deepcoder_cli", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (Exit.CLOSED_PIPE, "")
