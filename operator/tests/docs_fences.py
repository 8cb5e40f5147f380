"""The code fences of the docs' pages, and what stands beside each that holds commands: where it is run, or why not.

    <!-- run: cluster, given: installed, run ml/deepcoder-14b -->
    <!-- not run: it needs Docker -->

stands on the line above the fence, where it is seen by whoever edits the page and by nobody who reads it. `sh` fences
are scripts; `console` fences are transcripts, commands behind `$ ` with what they print. A fence that holds commands
and says neither raises `Unmarked`: what is shown to people is run, or it is said why it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [
    TUTORIAL,
    *sorted((DOCS / "howto").glob("*.md")),
    DOCS / "dashboard.md",
    DOCS / "monitoring.md",
    ROOT / "README.md",
]
"""Those that tell people what to type."""

SHELL, CLUSTER, DEMO = "shell", "cluster", "demo"
WORLDS = {
    SHELL: "in a shell alone",
    CLUSTER: "before a real API server and a real S3 server, with runs that were played through the operator",
    DEMO: "on the development cluster, by the end-to-end tests",
}

_FENCE = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN = re.compile(r"<!-- run: (?P<world>\w+)(?:, given: (?P<given>[^>]+?))? -->")
_NOT = re.compile(r"<!-- not run: (?P<reason>[^>]{8,}?) -->")
_PROMPT = "$ "


class Unmarked(Exception):
    """A fence with commands that are neither run nor excused."""


@dataclass(frozen=True)
class Step:
    """A command of a transcript."""

    command: str
    shown: str
    """What it prints, according to the page."""


@dataclass(frozen=True)
class Fence:
    """One that holds commands."""

    page: Path
    line: int
    language: str
    body: str
    world: str | None = None
    given: tuple[str, ...] = ()
    """What has to be there before."""
    excuse: str | None = None

    @property
    def name(self) -> str:
        """As a test is named."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def steps(self) -> list[Step]:
        """Commands in order: a script is one."""
        if self.language == "sh":
            return [Step(self.body, "")]
        found: list[Step] = []
        command: list[str] = []
        shown: list[str] = []
        for line in [*self.body.splitlines(), _PROMPT]:
            if line.startswith(_PROMPT) and not (command and command[-1].endswith("\\")):
                if command:
                    found.append(Step("\n".join(command), "\n".join(shown)))
                command, shown = [line.removeprefix(_PROMPT)], []
            elif command and command[-1].endswith("\\") and not shown:
                command.append(line)
            else:
                shown.append(line)
        return found

    @property
    def text(self) -> str:
        """All commands, without what they print."""
        return "\n".join(step.command for step in self.steps)


def fences(page: Path) -> Iterator[Fence]:
    """Of a page, those that hold commands; raises `Unmarked`."""
    yield from read(page, page.read_text())


def read(page: Path, text: str) -> Iterator[Fence]:
    """The same of a page with this text."""
    if indented := re.search(r"^[ \t]+```", text, re.MULTILINE):
        raise Unmarked(
            f"{page.relative_to(ROOT)}: a fence is indented: {indented[0]!r}; put it at the line's beginning"
        )
    for found in _FENCE.finditer(text):
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}"
        language = found["language"]
        if not language:
            raise Unmarked(f"{where}: name the fence's language: sh, console, yaml, python, text …")
        if language not in ("sh", "console"):
            continue
        above = text[: found.start()].rstrip("\n").rpartition("\n")[2]
        fence = Fence(page, int(where.rpartition(":")[2]), language, found["body"])
        run, excused = _RUN.fullmatch(above), _NOT.fullmatch(above)
        if run and run["world"] in WORLDS:
            given = tuple(part.strip() for part in (run["given"] or "").split(",") if part.strip())
            yield Fence(**(vars(fence) | {"world": run["world"], "given": given}))
        elif excused:
            yield Fence(**(vars(fence) | {"excuse": excused["reason"]}))
        else:
            raise Unmarked(
                f"{where}: say above the fence where its commands are run, `<!-- run: {'|'.join(WORLDS)} -->`, or why "
                "they are not, `<!-- not run: REASON -->`"
            )


def run_in(world: str) -> list[Fence]:
    """All fences of the docs that are run there."""
    return [fence for page in PAGES for fence in fences(page) if fence.world == world]


def shows(shown: str, printed: str) -> bool:
    """Whether a transcript is of a command that printed this, but for its figures; a line `…` leaves some out."""
    parts = [shape(part) for part in re.split(r"(?m)^…$", shown)]
    lines = shape(printed)
    if len(parts) == 1:
        return parts[0] == lines
    first, *_, last = parts
    if lines[: len(first)] != first or (last and lines[-len(last) :] != last):
        return False
    at = 0
    for part in parts:
        at = next(
            (i + len(part) for i in range(at, len(lines) - len(part) + 1) if lines[i : i + len(part)] == part), -1
        )
        if at < 0:
            return False
    return True


def differs(fence: Fence, printed: list[str]) -> str:
    """Transcripts of a fence that are not what was printed; one that shows nothing says nothing of it."""
    pairs = zip(fence.steps, printed, strict=True)
    wrong = [f"$ {step.command}\n{now}" for step, now in pairs if step.shown and not shows(step.shown, now)]
    return f"{fence.name} shows otherwise:\n" + "\n".join(wrong) if wrong else ""


def shape(printed: str) -> list[str]:
    """What two runs of a command have in common: its words, without figures, ages, digests and the columns' widths."""
    without = re.sub(r"sha256:[0-9a-f]+|\b[0-9a-f]{8,}\b", "#", printed)
    without = re.sub(r"(?<![\w/.-])[+-]?\d[\w.,:%/+-]*", "#", without)
    lines = (" ".join(re.sub(r"\d+", "#", line).split()) for line in without.splitlines())
    return [re.sub(r"(?:# ?)+", "# ", line).strip() for line in lines if line.strip()]
