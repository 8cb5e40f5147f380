"""Help that a user can go by, the page that is made from it, and the functions behind it."""

import inspect
from pathlib import Path

import click
import pytest

from deepcoder_cli.app import COMMANDS, app
from deepcoder_cli.declared import OfCluster
from deepcoder_cli.later import Later
from deepcoder_cli.reference import main, page
from deepcoder_cli.where import NAMES

ROOT = Path(__file__).resolve().parents[2]


def command(name: str) -> click.Command:
    found = app.get_command(click.Context(app), name)
    assert found is not None
    return found


def test_the_page_is_what_the_commands_say(tmp_path: Path) -> None:
    assert page().splitlines() == (ROOT / "docs/cli.md").read_text().splitlines(), "run `make generate`"
    assert main([str(ROOT / "docs/cli.md"), "--check"]) == 0
    (tmp_path / "old.md").write_text(page() + "\nan older word\n")
    assert main([str(tmp_path / "old.md"), "--check"]) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_has_examples_that_parse(name: str) -> None:
    shown = command(name)
    lines = [line.strip() for line in (shown.epilog or "").splitlines() if "kubectl deepcoder" in line]
    assert lines, "examples are missing"
    for line in lines:
        words = line.removeprefix("source <(").partition("  ")[0].partition(" >")[0].rstrip(")").split()
        assert words[:3] == ["kubectl", "deepcoder", name], line
        shown.make_context(name, words[3:])


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_command_takes_the_words_of_kubectl(name: str) -> None:
    options = {word for parameter in command(name).params for word in parameter.opts}
    assert {"-n", "--namespace", "--context", "--kubeconfig"} <= options
    every = [option for option in command(name).params if isinstance(option, click.Option)]
    assert all(option.help for option in every)
    if name not in ("dashboard", "debug-bundle"):
        assert "-o" in options


@pytest.mark.parametrize("name", COMMANDS)
def test_the_work_of_a_command_takes_the_parameters_that_its_help_shows(name: str) -> None:
    declared = COMMANDS[name]
    shown = {str(parameter.name) for parameter in declared.params}
    if isinstance(declared, OfCluster):
        shown = shown - {*NAMES, "all_namespaces"} | {"where"}
    assert set(inspect.signature(declared.work.function()).parameters) == shown


def test_every_completion_of_names_has_its_function() -> None:
    completions = [
        parameter._custom_shell_complete for command in (app, *COMMANDS.values()) for parameter in command.params
    ]
    named = [completion for completion in completions if isinstance(completion, Later)]
    assert {completion.function().__name__ for completion in named} == {"runs", "held_stages", "namespaces", "contexts"}
