"""`dashboard`: opens the dashboard that the operator's chart serves in this machine's browser, as the current user.

It needs no Ingress: the command forwards a connection to a pod of the dashboard for as long as it runs. A missing
permission is named with the role that grants it. If the pod goes away, the command looks for another one.
"""

from __future__ import annotations

import html
import secrets
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import click

from deepcoder_cli.proxy import Proxy
from deepcoder_cli.where import Where
from deepcoder_client.client import Client
from deepcoder_client.connection import PODS
from deepcoder_client.errors import Forbidden, NotFound, Refused, Unreachable
from deepcoder_client.permissions import DASHBOARD
from deepcoder_client.port_forward import Bearer, Stream, forward_rights, port_forward
from deepcoder_contracts.labels import COMPONENT_DASHBOARD, LABEL_COMPONENT

PORT = 8090
"""Port on which the dashboard listens on its pod's loopback interface."""
LABEL = f"{LABEL_COMPONENT}={COMPONENT_DASHBOARD}"
"""The chart's own pods alone: what the command forwards has the user's token."""


def dashboard(
    where: Where, run: str | None, port: int, no_open: bool, operator_namespace: str, service_account: str | None
) -> None:
    """Serve the dashboard's port on this machine until interrupted."""
    client = where.client()
    place = client.namespace
    pod = _page(client, operator_namespace)
    if (missing := client.connection.lacking(forward_rights(operator_namespace), pod)) is not None:
        raise Forbidden(missing)
    bearer = Bearer(client.connection, service_account, place)
    bearer.token()  # fails now if the account's token may not be requested

    dial = following(
        pod,
        lambda: _page(client, operator_namespace),
        lambda name: port_forward(client.connection, operator_namespace, name, PORT),
    )
    key = secrets.token_urlsafe(32)
    try:
        proxy = Proxy(port, key, bearer.token, dial)
    except OSError as error:
        raise click.UsageError(f"--port {port}: {error.strerror}: choose another, or leave it out") from None
    address = f"http://127.0.0.1:{proxy.port}/?key={key}" + (f"#/runs/{place}/{run}" if run else "")
    click.echo(f"{address}\nPress Ctrl-C to stop.")
    serving = Thread(target=proxy.serve, daemon=True)
    serving.start()  # before the browser: one in this terminal, such as w3m, does not return until the user leaves it
    with nullcontext() if no_open else opened(address):
        serving.join()


@contextmanager
def opened(address: str) -> Iterator[None]:
    """Open an address in the browser, by a file that only this user can read: all users of this machine can see the
    arguments of the program that is started for it. A browser that may not read it is given the printed address."""
    with TemporaryDirectory(prefix="deepcoder-") as directory:  # of mode 0700
        page = Path(directory, "dashboard.html")
        target = html.escape(address)
        text = f'<!doctype html><title>DeepCoder</title><meta http-equiv="refresh" content="0; url={target}">\n'
        page.write_text(text + f'<a href="{target}">Open the dashboard</a>\n')
        webbrowser.open(page.as_uri())
        yield


def following(pod: str, find: Callable[[], str], dial: Callable[[str], Stream]) -> Callable[[], Stream]:
    """Return a function that dials `pod`, and once that pod is gone (upgraded, or its node drained) another one."""
    current = pod

    def dialled() -> Stream:
        nonlocal current
        try:
            return dial(current)
        except Unreachable:
            current = find()
            return dial(current)

    return dialled


def _page(client: Client, namespace: str) -> str:
    """Return the name of a dashboard pod that is ready and not being deleted."""
    try:
        pods = client.connection.list(PODS, namespace, labelSelector=LABEL)["items"]
    except Forbidden as error:
        raise Forbidden(replace(error.right, granted_by=DASHBOARD)) from error
    for pod in pods:
        if "deletionTimestamp" in pod["metadata"]:
            continue
        conditions = (pod.get("status") or {}).get("conditions") or ()
        if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
            return str(pod["metadata"]["name"])
    if pods:
        raise Refused(f"no dashboard pod is ready in namespace {namespace}: see `kubectl -n {namespace} get pods`")
    raise NotFound(
        f"there is no dashboard pod in namespace {namespace}: name the chart's namespace with --operator-namespace, or "
        f"install the chart with web.enabled=true; a chart of an earlier release does not label its pods {LABEL}: "
        "upgrade it"
    )
