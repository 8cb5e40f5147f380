"""Commands start fast: what only one of them reads is loaded by that one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from deepcoder_cli.exit_codes import Exit

_SLOW_TO_LOAD = """
import signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal, wherever the tests run

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            print("loading", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
from deepcoder_cli.__main__ import main
sys.exit(main(["--help"]))
"""


def test_tables_are_loaded_by_the_command_that_reads_them() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from deepcoder_cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0  # it loads every command\n"
        "print(sorted({'numpy', 'pandas', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ctrl_c_while_the_program_is_loaded_ends_it_without_a_word() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_TO_LOAD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
