"""Writes all files of the repository that are generated from code, or with `--check` compares them.

    scripts/generated.py            for `make generate`
    scripts/generated.py --check    for `make lint`: names outdated files, and exits with 1

All generators run in one process, because most of their time is loading operator, client and contracts. Each is also a
separate program. If one fails, the next ones still run.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
CRDS = ("--output", "crds", "--output", "helm/deepcoder-operator/files/crds")

WRITERS: tuple[tuple[str, ...], ...] = (
    ("-m", "deepcoder_operator", "crds", *CRDS),
    ("-m", "deepcoder_cli.reference", "docs/cli.md"),
    ("monitoring/dashboards.py",),
    ("scripts/chart_values.py",),
    ("scripts/api_reference.py",),
    ("scripts/config_reference.py",),
    ("scripts/program_reference.py",),
    ("scripts/metrics_reference.py",),
)
"""Arguments for Python; each program takes `--check`."""


def run(command: tuple[str, ...]) -> int:
    """Run a program in this process as Python would; returns its exit code."""
    module = command[0] == "-m"
    name, *arguments = command[1:] if module else command
    kept = SimpleNamespace(argv=sys.argv, path=list(sys.path))
    sys.argv = [name, *arguments]
    try:
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str((ROOT / name).parent))
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv, sys.path[:] = kept.argv, kept.path
    return 0


def main(arguments: list[str]) -> int:
    """Run all; returns 1 if one has failed."""
    failed = [command for command in WRITERS if run((*command, *arguments)) != 0]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
