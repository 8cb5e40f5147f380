"""The version names all code that decides on verdicts: whoever keeps results by it takes none of other code."""

import ast
from pathlib import Path

import deepcoder_contracts
import deepcoder_sandbox
from deepcoder_sandbox.server.version import hashed_files

CONTRACTS, OWN = (Path(package.__file__).parent for package in (deepcoder_contracts, deepcoder_sandbox))
NO_PART_IN_VERDICTS = {"cpus.py", "json_flood.py", "server_log.py"}


def imported(path):
    """The contracts' modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == CONTRACTS.name:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == CONTRACTS.name}
    files = {CONTRACTS.parent.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    return {file for file in files if file.exists()}


def test_every_module_that_grades_is_in_the_version():
    wanted, found = set(OWN.rglob("*.py")), set()
    while wanted:
        found |= wanted
        wanted = {file for path in wanted for file in imported(path)} - found
    assert CONTRACTS / "strict.py" in found
    assert {path.name for path in found - set(hashed_files())} == NO_PART_IN_VERDICTS
