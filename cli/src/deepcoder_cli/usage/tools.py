"""Commands that start something on this machine: the dashboard's page, an archive, a completion script."""

from __future__ import annotations

from pathlib import Path

import click

from deepcoder_cli.declared import Declared, OfCluster
from deepcoder_cli.options import endpoint, operator_namespace, run_argument

DASHBOARD = OfCluster(
    "dashboard:dashboard",
    """
    Open the dashboard in a browser.

    The chart serves the dashboard if web.enabled is set, on a port inside its own pod. This command forwards a port
    through the API server, for which you need to get and create pods/portforward there, and sends your token with each
    request. So the dashboard shows what you may see. The address contains a key: anyone who has it sees what you see
    while this command runs.
    """,
    run_argument(required=False),
    click.Option(
        ["--port"], type=click.IntRange(0, 65535), default=0, help="Port on this machine (default: a free one)."
    ),
    click.Option(["--no-open"], is_flag=True, help="Print the address without opening a browser."),
    operator_namespace(),
    click.Option(["--service-account"], metavar="NAME", help="Show what this ServiceAccount of the namespace may see."),
    examples="""
kubectl deepcoder dashboard                      # all runs that you may see
kubectl deepcoder dashboard demo -n demo         # one of them
kubectl deepcoder dashboard --no-open --port 9000
kubectl deepcoder dashboard --service-account viewer -n demo
""",
)

DEBUG_BUNDLE = OfCluster(
    "bundle:debug_bundle",
    """
    Collect everything needed to investigate a problem, without secrets.

    The archive holds the run, its child objects, pods, events, current logs, the logs of the last two attempts from
    the bucket, nodes, quotas, and the operator's own pods. You can send it to whoever helps you. Values of the Secrets
    that the pods can read, variables named like secrets, and tokens of known formats are removed. If you may not read
    these Secrets, logs and all messages that may quote them are left out. --include-logs includes them anyway; check
    them before you send the archive. REPORT.txt in the archive lists what could not be collected, and why.
    """,
    run_argument(),
    click.Option(
        ["--file", "path"], type=click.Path(path_type=Path), help="Archive to write (default: RUN-TIME.tar.gz here)."
    ),
    operator_namespace(),
    click.Option(
        ["--include-logs"], is_flag=True, help="Include pod logs even if you may not read all of the pods' Secrets."
    ),
    endpoint(),
    examples="""
kubectl deepcoder debug-bundle demo -n demo
kubectl deepcoder debug-bundle demo --file /tmp/demo.tar.gz --operator-namespace deepcoder-system
kubectl deepcoder debug-bundle demo --include-logs
""",
)

COMPLETION = Declared(
    "completion:completion",
    """
    Print a completion script for a shell.

    The script completes `kubectl-deepcoder`. For `kubectl deepcoder`, use kubectl's own completion: it finds the
    program kubectl_complete-deepcoder next to this one.
    """,
    click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"])),
    examples="""
source <(kubectl deepcoder completion bash)      # in ~/.bashrc
source <(kubectl deepcoder completion zsh)       # in ~/.zshrc
kubectl deepcoder completion fish > ~/.config/fish/completions/kubectl-deepcoder.fish
""",
)
