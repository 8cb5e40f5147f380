"""What the docs tell people to type is run by a test, or beside it is said why not; of that, what can be held is held.

Those that are run are in `operator/tests/test_docs_run.py` and `tests/e2e/test_e2e_tutorial.py`. Here: no fence with
commands is forgotten, commands that are not run have options that parse and files that exist, and an image that is
built has its Dockerfile, its context and its arguments.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from docs_fences import PAGES, ROOT, WORLDS, Fence, Unmarked, differs, fences, read, shape, shows

from deepcoder_cli.app import COMMANDS, app

_FOREIGN = {"export", "head", "docker", "gcloud", "eksctl", "hf", "aws", "make"}
_HEREDOC = re.compile(r"<<'(?P<end>\w+)'[^\n]*\n(?P<text>.*?)^(?P=end)$", re.MULTILINE | re.DOTALL)


def commands(fence: Fence) -> list[list[str]]:
    """Words of each, lines that go on joined, without what is fed to one."""
    lines = _HEREDOC.sub("", fence.text).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.partition(" | ")[0], comments=True) for line in lines]
    return [words for words in found if words]


ALL = [(fence, words) for page in PAGES for fence in fences(page) for words in commands(fence)]
EXCUSED = [(fence, words) for fence, words in ALL if fence.excuse]


def of(*program: str) -> list[tuple[Fence, list[str]]]:
    """Commands of a program that are not run."""
    return [(fence, words) for fence, words in EXCUSED if tuple(words[: len(program)]) == program]


def named(case: object) -> str:
    return case.name if isinstance(case, Fence) else " ".join(case)[:60] if isinstance(case, list) else str(case)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_with_commands_is_run_or_excused(page: Path) -> None:
    for fence in fences(page):
        assert (fence.world in WORLDS) is not bool(fence.excuse)
        assert fence.steps, f"{fence.name} holds no command"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```sh\nkubectl get dcr\n```\n", "say above the fence"),
        ("<!-- run: nowhere -->\n```sh\nkubectl get dcr\n```\n", "say above the fence"),
        ("<!-- not run: no -->\n```sh\nkubectl get dcr\n```\n", "say above the fence"),
        ("<!-- run: shell -->\n\nSome words.\n\n```console\n$ true\n```\n", "say above the fence"),
        ("```\nkubectl get dcr\n```\n", "name the fence's language"),
        ("- a point\n\n  ```sh\n  true\n  ```\n", "indented"),
    ],
)
def test_a_command_that_is_neither_run_nor_excused_is_told(text: str, said: str) -> None:
    with pytest.raises(Unmarked, match=said):
        list(read(ROOT / "docs/index.md", text))


def test_a_transcript_is_commands_and_what_they_print() -> None:
    fence = Fence(ROOT / "docs/index.md", 1, "console", "$ one \\\n    --more\nits words\n$ two\n$ three\na\nb\n")
    assert [(step.command, step.shown) for step in fence.steps] == [
        ("one \\\n    --more", "its words"), ("two", ""), ("three", "a\nb")
    ]  # fmt: skip
    assert shape("short   30  0.33 → 0.63\nsha256:0123456789ab") == shape("short 9   0.1 → 0.25\n\nsha256:ffff456789ab")
    assert shape("long/step-000030.a002  4m12s") == shape("long/step-000010.a001   2d")
    assert shape("Complete 3") != shape("Failed 3")


def test_a_transcript_that_shows_something_else_is_told() -> None:
    fence = Fence(ROOT / "docs/index.md", 1, "console", "$ one\nComplete 1\n$ two\n")
    assert differs(fence, ["Complete 7\n", "whatever\n"]) == ""
    assert "$ one\nFailed 7" in differs(fence, ["Failed 7\n", "whatever\n"])


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1\nb 2", "a 7\nb 8\n", True),
        ("a 1\nb 2", "a 7\nb 8\nc 9", False),
        ("a 1\n…\nc 3", "a 7\nb 8\nc 9", True),
        ("a 1\n…\nd 3", "a 7\nb 8\nc 9", False),
        ("a 1\n…", "a 7\nb 8\nc 9", True),
        ("b 1\n…", "a 7\nb 8\nc 9", False),
        ("…\nb 1\n…\nc 1", "a 7\nb 8\nc 9", True),
        ("a 1\n…\nc 1\n…\nb 1", "a 7\nb 8\nc 9", False),
    ],
)
def test_what_a_page_shows_is_what_was_printed_but_for_figures(shown: str, printed: str, same: bool) -> None:
    assert shows(shown, printed) is same


def test_programs_are_known() -> None:
    ours = {"kubectl", "helm", "deepcoder-trainer", ".venv/bin/deepcoder-trainer", "deepcoder-operator"}
    unknown = {words[0] for _, words in EXCUSED} - ours - _FOREIGN
    assert not unknown, f"nothing is held of {unknown}: run them, or look at what can be held"


@pytest.mark.parametrize(("fence", "words"), of("kubectl", "deepcoder"), ids=named)
def test_the_command_line_takes_it(fence: Fence, words: list[str]) -> None:
    name, *arguments = words[2:]
    assert name in COMMANDS, f"{fence.name}: no command {name}"
    # Commands keep the help option of the first context that they are in: it is the program's own.
    root = click.Context(app, **app.context_settings)
    command = app.get_command(root, name)
    assert command is not None
    command.make_context(name, arguments, parent=root).close()


@pytest.mark.parametrize(("fence", "words"), of("kubectl", "apply", "-f"), ids=named)
def test_the_manifest_is_there(fence: Fence, words: list[str]) -> None:
    path = words[words.index("-f") + 1]
    assert (ROOT / path).is_file(), f"{fence.name}: {path}"


@pytest.mark.parametrize(("fence", "words"), of(".venv/bin/deepcoder-trainer"), ids=named)
def test_the_trainer_has_these_options(fence: Fence, words: list[str]) -> None:
    _, name, *arguments = words
    done = subprocess.run(
        [sys.executable, "-m", "deepcoder_trainer", name, "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
        assert option in done.stdout, f"{fence.name}: {name} has no {option}"


@pytest.mark.parametrize(("fence", "words"), of("make"), ids=named)
def test_make_has_this_target(fence: Fence, words: list[str]) -> None:
    targets = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[1] in targets, f"{fence.name}: no target {words[1]}"


def builds() -> list[tuple[Fence, list[str], str]]:
    """Images that pages build: the fence, the command's words, and the Dockerfile that it is fed, if any."""
    found = []
    for fence, words in of("docker", "build"):
        fed = _HEREDOC.search(fence.text)
        found.append(
            (fence, words, fed["text"] if fed and "-f" in words and words[words.index("-f") + 1] == "-" else "")
        )
    return found


@pytest.mark.parametrize(("fence", "words", "fed"), builds(), ids=named)
def test_an_image_has_its_dockerfile_its_context_and_its_arguments(fence: Fence, words: list[str], fed: str) -> None:
    takes_value = {"-f", "--file", "-t", "--tag", "--build-arg", "--target"}
    contexts = [
        w for i, w in enumerate(words[2:], 2) if not w.startswith(("-", "<")) and words[i - 1] not in takes_value
    ]
    (context,) = contexts
    assert (ROOT / context).is_dir(), f"{fence.name}: {context} is no folder to copy from"
    dockerfile = fed or (ROOT / words[words.index("-f") + 1]).read_text()
    given = [words[i + 1].partition("=") for i, w in enumerate(words) if w == "--build-arg"]
    for name, _, value in given:
        dockerfile = dockerfile.replace(f"${{{name}}}", value)
        assert re.search(rf"^ARG {name}\b", dockerfile, re.MULTILINE), f"{fence.name}: the Dockerfile takes no {name}"
    for line in dockerfile.replace("\\\n", " ").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = [w for w in shlex.split(line)[1:] if not w.startswith("--")]
            for source in sources:
                assert list((ROOT / context).glob(source.rstrip("/"))), f"{fence.name}: {source} is not in {context}"
