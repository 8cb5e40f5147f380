"""What a page names is there: source files and folders, tests, targets of make, which a move takes along; and what
variables do stands on a page.

Dated pages of results are left out: they tell what was there on their day.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path
    for path in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    ).stdout.splitlines()
    if (ROOT / path).exists()
]  # fmt: skip
PLACES = sorted({*FILES, *(str(folder) for path in FILES for folder in Path(path).parents)} - {"."})
PAGES = [ROOT / path for path in FILES if path.endswith(".md") and not path.startswith("docs/results/")]
TOP = {path.partition("/")[0] for path in FILES if "/" in path}
TESTS = {Path(path).name: (ROOT / path).read_text() for path in FILES if re.search(r"/test_\w+\.py$", path)}
_ELSEWHERE = ("rllm/", "verl/", "scripts/deepcoder/")
"""Files of the released code, which grpo-plus.md compares with."""
_OTHERS = {"cf_elo_calc.py", "shorter.py"}
"""A file of the released code, and the one that one-machine.md has its reader write."""
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_TEST = re.compile(r"\b(?P<file>test_\w+)(?:\.py)?::(?P<test>\w+)")
_TEST_FILE = re.compile(r"\b(?:\w+/)*test_[\w{},*]+\.py")
_VARIABLE = re.compile(r"\bDEEPCODER_[A-Z0-9_]*[A-Z0-9]\b")
_MAKE = re.compile(r"^(?:\$ )?make (?P<target>[a-z][\w-]*)")


def code(page: Path) -> list[str]:
    """Spans of code outside of fences."""
    return _CODE.findall(_FENCE.sub("", page.read_text()))


def is_place(text: str) -> bool:
    """Whether it names a file or folder of the repository, and not of a bucket, a machine or the reader."""
    if text in _OTHERS or text.startswith(_ELSEWHERE) or not re.fullmatch(r"[\w.…{},*/-]+", text):
        return False
    if re.search(r"[\w-]\.(py|sh)$", text):
        return True
    first, _, rest = text.partition("/")
    return bool(rest) and first in TOP and rest != rest.upper()  # `devcluster/NAME` is any


def expanded(text: str) -> Iterator[str]:
    """`{a,b}` as a shell does it."""
    parts = [p.split(",") if at % 2 else [p] for at, p in enumerate(re.split(r"[{}]", text))]
    return ("".join(each) for each in itertools.product(*parts))


def found(place: str) -> bool:
    """Whether there is one; what stands before `…/` is a folder above it."""
    above, _, rest = place.rstrip("/").rpartition("…/")
    patterns = [rest, f"{above}*/{rest}"] if above else [rest, f"*/{rest}"]
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns for path in PLACES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    places = {p for text in code(page) if is_place(text) for p in expanded(text)}
    assert not [place for place in sorted(places) if not found(place)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    assert not [file for each in _TEST_FILE.findall(text) for file in expanded(each) if not found(file)]
    named = {(f"{match['file']}.py", match["test"]) for match in _TEST.finditer(text)}
    assert not [f"{file}::{test}" for file, test in sorted(named) if f"def {test}(" not in TESTS.get(file, "")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_of_make_that_a_page_names_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    benchmarks = re.search(r"^BENCHMARKS := (.*)$", makefile, re.MULTILINE)
    assert benchmarks is not None
    targets = {*re.findall(r"^([\w-]+):", makefile, re.MULTILINE), *(f"bench-{b}" for b in benchmarks[1].split())}
    in_fences = [line for fence in _FENCE.findall(page.read_text()) for line in fence.splitlines()]
    named = {match["target"] for text in [*code(page), *in_fences] if (match := _MAKE.match(text))}
    assert named - targets <= {"bench-NAME", "bench-"}


def test_variables_that_programs_read_are_on_a_page() -> None:
    programs = [path for path in FILES if "/src/" in path or path.startswith("packaging/")]
    read = {name for path in programs for name in _VARIABLE.findall((ROOT / path).read_text(errors="ignore"))}
    told = {name for page in PAGES for name in _VARIABLE.findall(page.read_text())}
    assert read - told == {"DEEPCODER_SETTINGS"}, "of these, only what one process of ours tells another"


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("operator/…/domain", True), ("operator/…/domain/plan.py", True), ("trainer_image/…/domain/plan.py", False),
        ("plan.py", True), ("no_such.py", False), ("operator/tests/test_{crds,no_such}.py", False),
        ("sandbox_image/tests/livecodebench_*_rows.py", True), ("docs/howto/", True), ("docs/no-such", False),
    ],
)  # fmt: skip
def test_a_place_that_is_not_there_is_found_out(text: str, there: bool) -> None:
    assert is_place(text)
    assert all(found(place) for place in expanded(text)) is there


@pytest.mark.parametrize(
    "text", ["run.py --help", "logs/driver.log", "devcluster/NAME", "verl/verl/trainer/main_ppo.py"]
)
def test_what_is_elsewhere_is_not_looked_for(text: str) -> None:
    assert not is_place(text)
