"""Writes docs/cli.md from the commands' own help: `python -m deepcoder_cli.reference docs/cli.md [--check]`.

Text that is not help (how to install it, which permissions a user needs) is here and nowhere else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from deepcoder_cli.app import COMMANDS, app
from deepcoder_cli.exit_codes import MEANINGS
from deepcoder_cli.options import OfKubectl, shared

WIDTH = 100
HEAD = """# kubectl deepcoder

<!-- Generated from the commands' help by `make generate`; change that instead. -->

Work with DeepCoder runs from the command line. You need only your kubeconfig. For the same in Python, for example in
notebooks, see [client.md](client.md).

## Installing

```
pip install ./contracts ./client ./cli      # from a checkout, with Python 3.11 or newer
kubectl deepcoder --help
```

kubectl finds the program `kubectl-deepcoder` on the PATH. `packaging/krew/` builds archives and the manifest for
[krew](https://krew.sigs.k8s.io); they are not published in krew's index. krew puts only the plugin itself on the PATH.
For completion, also link `kubectl_complete-deepcoder` from the plugin's folder to a folder on the PATH. On its first
start the plugin creates a Python environment with its dependencies; until then, completion offers nothing. If you have
an interpreter that already has them, set `DEEPCODER_PLUGIN_PYTHON` to it.

`source <(kubectl completion bash)` also completes `kubectl deepcoder`, because kubectl runs the program
`kubectl_complete-deepcoder`. For `kubectl-deepcoder` itself, use the script that `completion` prints.

## What you need to be allowed

| command | permissions | granted by |
|---|---|---|
| `status`, `stages`, `cost` | get, list runs and pools | `[<release>-]deepcoder-operator-view`, hence `view` |
| `status`: pods; `logs`: samplers, learners, judge; `debug-bundle` | list pods, get pods/log, list events | `view` |
| `logs`: the live driver | get and create pods/exec | `edit` |
| `dashboard` | in the chart's namespace: list pods, get and create pods/portforward | its Role `…-dashboard` there |
| `approve`, `suspend`, `resume` | patch runs | `[<release>-]deepcoder-operator-edit`, hence `edit` |
| `samples`, `lineage`, `verify`, `compare`, `logs --attempt` | read the run's bucket | see below |
| `plan` | nothing; with `--server` create and patch runs | `edit` |

With the chart's `watchNamespaces`, its roles are Roles in these namespaces, which `view` and `edit` do not include; nor
do they with `rbac.aggregate: false`. Bind the chart's own then.

If a permission is missing, the message names verb, resource, namespace and the role that grants it. Everything that
does not need this permission is still shown.

The commands read the bucket with the first credentials that they find:

1. your own, if the environment names some (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, a web identity);
2. those of the run's Secret, if you may get it (`edit`, or a Role for this Secret alone);
3. those that the AWS SDK for Python finds.

If the S3 server has another address outside the cluster, set `--endpoint` or `AWS_ENDPOINT_URL_S3`.

If the credentials of your kubeconfig are renewed while a command runs (`tokenFile`, an exec plugin, a new login), the
command reads them again as soon as the API server refuses the old ones.

`debug-bundle` removes the values of all Secrets that the run's pods can read, and of variables named like secrets. If
you may not read these Secrets, the command cannot know what is secret in a log. It then leaves out logs, and messages
that may quote them, unless you give `--include-logs`. To read the operator's log you need permissions in the namespace
of the chart.

## What is printed

On a terminal, `logs` shows only the text that programs printed: colours are removed, and other control characters are
shown as `\\x1b`. Otherwise a program could change the terminal's title, overwrite lines, or fill the clipboard. If
standard output is no terminal, `logs` passes on what was printed, byte by byte: `kubectl deepcoder logs demo | less -R`
shows the colours. All other output for people shows control characters in the same way, wherever it goes. JSON and YAML
escape them and keep their values.

`status` uses colours only on a terminal, and none if `NO_COLOR` is set.
"""

OPTIONS = """All commands but `completion` take these options of kubectl, before the command or after it. If both places
have the same option, the one after the command counts. For `plan`, put the `--server` of kubectl before the command. As
in kubectl, `--as` needs the permission to impersonate. With `--as`, the live driver's log and `dashboard` do not work:
they open a connection into a pod, which cannot impersonate a user."""


def page() -> str:
    """Return the page."""
    codes = "\n".join(f"| {code.value} | {said} |" for code, said in MEANINGS.items())
    root = click.Context(app, info_name="kubectl deepcoder", help_option_names=["-h", "--help"])
    parts = [HEAD, f"## kubectl's options\n\n{OPTIONS}\n\n| option | |\n|---|---|\n{_options(root)}\n"]
    parts += [f"## Exit codes\n\n| code | |\n|---|---|\n{codes}\n", "## Commands\n"]
    for name in COMMANDS:
        command = app.get_command(root, name)
        assert command is not None, name
        own = click.Context(command, parent=root, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
        text = "\n".join(line.rstrip() for line in command.get_help(own).splitlines())
        parts.append(f"### {name}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def _options(root: click.Context) -> str:
    """Return kubectl's options, one table row each."""
    found = [option.get_help_record(root) for option in shared() if isinstance(option, OfKubectl)]
    return "\n".join(f"| `{names}` | {said} |" for names, said in filter(None, found))


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` return 1 if it is out of date."""
    path = Path(arguments[0])
    if "--check" not in arguments:
        path.write_text(page())
        return 0
    if path.exists() and path.read_text() == page():
        return 0
    sys.stderr.write(f"{path} is out of date: run `make generate`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
