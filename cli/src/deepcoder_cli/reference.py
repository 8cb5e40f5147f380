"""Writes docs/cli.md from the commands' own help: `python -m deepcoder_cli.reference docs/cli.md [--check]`.

What is not help, how it is installed and what a user needs to be allowed, stands here and nowhere else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from deepcoder_cli.app import COMMANDS, app
from deepcoder_cli.exits import MEANINGS

WIDTH = 100
HEAD = """# kubectl deepcoder

<!-- Generated from the commands' help by `make generate`; change that instead. -->

DeepCoder runs from the command line, with nothing but your kubeconfig. The same things from Python, for notebooks:
[client.md](client.md).

## Installing

```
pip install ./contracts ./client ./cli      # from a checkout, with Python 3.11 or newer
kubectl deepcoder --help
```

kubectl finds the program `kubectl-deepcoder` on the PATH. `packaging/krew/` makes archives and the manifest for
[krew](https://krew.sigs.k8s.io); they are not published in krew's index. krew puts the plugin alone on the PATH: link
`kubectl_complete-deepcoder` from its folder there for completion. Its first start makes an environment for what it
needs; `DEEPCODER_PLUGIN_PYTHON` names an interpreter that has all that already.

Completion: `source <(kubectl completion bash)` completes `kubectl deepcoder` as well, since kubectl asks the program
`kubectl_complete-deepcoder`; `kubectl-deepcoder` by itself is completed by the script that `completion` prints.

## What you need to be allowed

| command | needs | which is in |
|---|---|---|
| `status`, `stages`, `cost` | get, list runs and pools | `[<release>-]deepcoder-operator-view`, hence `view` |
| `status`: pods; `logs`: samplers, learners, judge; `debug-bundle` | list pods, get pods/log, list events | `view` |
| `logs`: the live driver | get and create pods/exec | `edit` |
| `dashboard` | in the chart's namespace: list pods, get and create pods/portforward | its Role `…-dashboard` there |
| `approve`, `suspend`, `resume` | patch runs | `[<release>-]deepcoder-operator-edit`, hence `edit` |
| `samples`, `lineage`, `verify`, `compare`, `logs --attempt` | to read the run's bucket | see below |
| `plan` | nothing; with `--server` create and patch runs | `edit` |

A permission that is missing is named with verb, resource, namespace and the role that grants it; what the rest of a
view can do without it, is shown.

The bucket is read with your own credentials where the environment names some (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, a
web identity), else with those of the run's Secret where you may get it (`edit`, or a Role for this Secret alone),
else with what boto3 finds. Where its server has another address outside the cluster: `--endpoint` or
`AWS_ENDPOINT_URL_S3`.

`debug-bundle` takes out the values of all Secrets that the run's pods can read, and of variables that are named as
secrets are. Who may not read these Secrets cannot know what is secret in a log: logs, and messages that may quote
them, are then left out, unless `--include-logs` is given. The operator's log is read in the namespace of the chart,
which needs rights there.
"""


def page() -> str:
    """The page."""
    codes = "\n".join(f"| {code.value} | {said} |" for code, said in MEANINGS.items())
    parts = [HEAD, f"## Exit codes\n\n| code | |\n|---|---|\n{codes}\n", "## Commands\n"]
    root = click.Context(app, info_name="kubectl deepcoder", help_option_names=["-h", "--help"])
    for name in COMMANDS:
        command = app.get_command(root, name)
        assert command is not None, name
        own = click.Context(command, parent=root, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
        text = "\n".join(line.rstrip() for line in command.get_help(own).splitlines())
        parts.append(f"### {name}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` say whether it differs."""
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
