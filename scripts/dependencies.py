"""Checks that each package declares exactly what it imports, and that docs/dependencies.md has a line for every
dependency, with the pinned version.

    scripts/dependencies.py --check       for `make lint`: reports what is missing or superfluous, and exits with 1
    scripts/dependencies.py --licences    a table of what the images contain, by licence, from the installed packages

An undeclared library that another one brings disappears with the other one; a declared library that nothing imports is
useless. The installed packages (`make setup`) show which distribution a module belongs to.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("contracts", "operator", "sandbox_image", "trainer_image", "devcluster", "client", "cli", "web", "demo")
PAGE = ROOT / "docs" / "dependencies.md"
SHIPPED = ("operator", "sandbox", "trainer-cpu", "trainer-cuda")
"""Sets of versions that go into images."""

RUN = {"deepcoder-demo": {"deepcoder-cli", "deepcoder-devcluster", "deepcoder-trainer"}}
"""Declared for their programs, not for imports."""

CHOSEN = {"deepcoder-trainer": {"vllm"}}
"""Imported but not declared: an image's device decides which of two distributions provides vLLM."""

TYPES = {"mypy-boto3-s3"}
"""Imported only for mypy; constraints/dev.txt has them."""

MODULES = {"gguf": "gguf", "llama_cpp": "llama-cpp-python"}
"""Distributions of modules that `make setup` does not install."""

_REVIEWED = re.compile(r"\b(GPL|LGPL|AGPL|EUPL|CDDL|EPL|Proprietary|NVIDIA|Intel)", re.IGNORECASE)
_UNTOLD = "not told"


def main() -> int:
    """Check, or print licences; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare imports, declarations and the page")
    parser.add_argument("--licences", action="store_true", help="print the licences of everything in the images")
    asked = parser.parse_args()
    if asked.licences:
        _print_licences()
    problems = [*_imports(), *_rows()] if asked.check or not asked.licences else []
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _imports() -> Iterator[str]:
    """Differences between the imports of each part and its pyproject.toml."""
    distributions = {m: {normal(d) for d in ds} for m, ds in metadata.packages_distributions().items()}
    distributions |= {m: {d} for m, d in MODULES.items()}
    for part in PARTS:
        project = _project(part)
        name, declared, found = project["name"], set(declarations(project)), set[str]()
        for module, where in sorted(imported(ROOT / part / "src").items()):
            known = distributions.get(module, {normal(module)})
            if known & (TYPES | {name}) or module in CHOSEN.get(name, ()):
                continue
            if not known & declared:
                yield f"{where}: imports {module}, which {part}/pyproject.toml does not declare ({', '.join(known)})"
            found |= known
        for extra in sorted(declared - found - RUN.get(name, set())):
            yield f"{part}/pyproject.toml declares {extra}, which nothing in it imports: remove it"


def imported(folder: Path) -> dict[str, str]:
    """Top-level modules outside the standard library, each with a file that imports it."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for module in (name.partition(".")[0] for name in names):
                if module not in sys.stdlib_module_names:
                    found.setdefault(module, str(path.relative_to(folder.parents[1])))
    return found


def declarations(project: Mapping[str, Any]) -> Iterator[str]:
    """Names of a project's dependencies, including those of its extras."""
    extras = [text for each in project.get("optional-dependencies", {}).values() for text in each]
    for text in (*project.get("dependencies", ()), *extras):
        yield normal(re.split(r"[\s\[<>=!~;]", text, maxsplit=1)[0])


def _rows() -> Iterator[str]:
    """Dependencies without a line on the page, and lines with another version than the pinned one."""
    wanted = {d for part in PARTS for d in declarations(_project(part)) if not d.startswith("deepcoder-")}
    pins: dict[str, set[str]] = defaultdict(set)
    for name, versions in pinned(tuple(path.stem for path in (ROOT / "constraints").glob("*.txt"))).items():
        pins[name] |= set(versions.values())
    for file in json.loads((ROOT / "web/src/deepcoder_web/static/vendor/versions.json").read_text())["files"].values():
        wanted.add(normal(file["package"]))
        pins[normal(file["package"])].add(file["version"])
    for path in (ROOT / "devcluster" / "go").glob("*/go.mod"):
        wanted |= {path.parent.name} - {"pause"}
        pins[path.parent.name] |= set(re.findall(r" v(\S+)", path.read_text()))
    page = PAGE.read_text() if PAGE.exists() else ""
    rows = re.findall(r"^\| `([\w.-]+)` \|[^|]*\|[^|]*\| (\d[^| ]*)", page, re.MULTILINE)
    where = PAGE.relative_to(ROOT)
    missing = wanted - {normal(name) for name, _ in rows}
    yield from (f"{where} has no line for {name}: say why it is there" for name in sorted(missing))
    for name, version in rows:
        if version not in pins[normal(name)]:
            yield f"{where} says that {name} is pinned to {version}, which it is not"


def _print_licences() -> None:
    by_licence: dict[str, list[str]] = defaultdict(list)
    for name in sorted(pinned(SHIPPED)):
        by_licence[licence(name)].append(name)
    for text, names in sorted(by_licence.items(), key=lambda item: (not _REVIEWED.search(item[0]), item[0])):
        print(f"{'REVIEW ' if _REVIEWED.search(text) else ''}{text}: {', '.join(names)}")


def pinned(sets: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """For each distribution, its version in each set."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for each in sets:
        for name, version in re.findall(
            r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "constraints" / f"{each}.txt").read_text(), re.MULTILINE
        ):
            found[normal(name)][each] = version
    return found


def licence(name: str) -> str:
    """The licence in the distribution's own metadata, from the first field that has it."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return f"{_UNTOLD} (not installed here)"
    told = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    text = about.get("License-Expression") or "; ".join(told) or (about.get("License") or _UNTOLD).splitlines()[0]
    return str(text)


def _project(part: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"]
    return found


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
