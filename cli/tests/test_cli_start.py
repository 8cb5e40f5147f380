"""Commands start fast: what only one of them reads is loaded by that one."""

from __future__ import annotations

import subprocess
import sys


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
