"""A real Prometheus scrapes a real run: the queries of every dashboard panel and every alert find data.

Prometheus runs outside the cluster and reaches operator, head and judges through port-forwards, with the labels
that the chart's PodMonitors would add.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e_world import TIMEOUT, World, wait_until

from deepcoder_demo.settings import OPERATOR_NAMESPACE
from devcluster import testprograms
from devcluster.config import cache_root

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "e2e-monitored"
STEPS = 900
"""More than are ever trained here, so the run continues during the whole test."""
FILES = Path(__file__).resolve().parents[2] / "helm" / "deepcoder-operator" / "files"
_SELECTOR = re.compile(r"(?<!:)\bdeepcoder_\w+(?:\{[^}]*\})?")
"""Of scraped series. What rules record of them has a colon before, and is empty as long as nothing fails."""


@contextmanager
def forwarded(world: World, namespace: str, pod: str, port: int) -> Iterator[str]:
    """A host:port on this machine that reaches a port of a pod."""
    local = _free_port()
    command = [world.cluster.kubectl, "port-forward", "-n", namespace, f"pod/{pod}", f"{local}:{port}"]
    environment = {**os.environ, "KUBECONFIG": str(world.cluster.kubeconfig)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"Forwarding" in process.stdout.readline()
        yield f"127.0.0.1:{local}"
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def prometheus(directory: Path, targets: list[tuple[str, dict[str, str]]]) -> Iterator[str]:
    """A Prometheus that scrapes addresses each second, with labels; yields its URL."""
    scrape = [{"targets": [address], "labels": labels} for address, labels in targets]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILES / "alerts.yaml")],
        "scrape_configs": [{"job_name": "all", "honor_labels": True, "static_configs": scrape}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = _free_port()
    command = [
        testprograms.prometheus(cache_root()), f"--config.file={directory}/prometheus.yaml",
        f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def ask(url: str, path: str, **query: str) -> Any:
    """Data from Prometheus' API; None while it does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=TIMEOUT) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


def panels() -> dict[str, str]:
    """For each dashboard's panels, by title, a query with the variables set to All."""
    found = {}
    for path in sorted((FILES / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query = re.sub(r"\$(namespace|run|pool)\b", ".*", target["expr"]).replace("$__rate_interval", "30s")
                found[f"{dashboard['title']}: {panel['title']} {target['refId']}"] = query
    return found


def alerts() -> dict[str, str]:
    """The series of each alert and of what rules record, by its name; promtool tests the comparisons."""
    rules = [rule for name in ("alerts.yaml", "alerts-standby.yaml") for rule in _rules(FILES / name)]
    return {f"{_name(rule)}: {selector}": selector for rule in rules for selector in _SELECTOR.findall(rule["expr"])}


def test_every_panel_and_every_alert_finds_its_data_in_a_run(
    world: World, start_run: Callable[..., str], tmp_path: Path
) -> None:
    start_run(NAME, STEPS)
    world.wait_for(NAME, "a step was trained", lambda s: (s.get("progress") or {}).get("step", 0) >= 1, 400)
    head = world.status(NAME)["attempt"]["headPod"]
    judges = world.core.list_namespaced_pod(
        world.namespace, label_selector=f"deepcoder.dev/pool={NAME}-sandbox", _request_timeout=TIMEOUT
    ).items
    operators = world.core.list_namespaced_pod(
        OPERATOR_NAMESPACE, label_selector="app.kubernetes.io/name=deepcoder-operator", _request_timeout=TIMEOUT
    ).items
    with ExitStack() as stack:

        def target(namespace: str, pod: str, port: int, **labels: str) -> tuple[str, dict[str, str]]:
            address = stack.enter_context(forwarded(world, namespace, pod, port))
            return address, {"namespace": namespace, "pod": pod, **labels}

        targets = [target(OPERATOR_NAMESPACE, p.metadata.name, 8080) for p in operators]
        targets += [target(world.namespace, p.metadata.name, 8080, pool=f"{NAME}-sandbox") for p in judges[:1]]
        targets.append(target(world.namespace, head, 9464, run=NAME, stage="short", attempt="1"))
        url = stack.enter_context(prometheus(tmp_path, targets))
        wait_until("all is scraped", lambda: _all_up(url, len(targets)), 60, lambda: ask(url, "targets"))
        asked = panels() | alerts()

        missing = dict(asked)

        def all_found() -> bool:
            for what, query in list(missing.items()):
                if (ask(url, "query", query=query) or {}).get("result"):
                    del missing[what]
            return not missing

        wait_until("every query has found data", all_found, 240, lambda: sorted(missing))
        assert _rules_of(url) == {_name(rule) for rule in _rules(FILES / "alerts.yaml")}


def _rules(path: Path) -> list[dict[str, str]]:
    content = yaml.safe_load(path.read_text())
    groups = content["groups"] if isinstance(content, dict) else content  # the latter: groups for charts with a standby
    return [rule for group in groups for rule in group["rules"]]


def _name(rule: dict[str, str]) -> str:
    return rule.get("alert") or rule["record"]


def _rules_of(url: str) -> set[str]:
    """Rules that Prometheus itself evaluates without an error."""
    groups = ask(url, "rules")["groups"]
    return {rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "ok"}


def _all_up(url: str, count: int) -> bool:
    found = (ask(url, "query", query="sum(up)") or {}).get("result")
    return bool(found) and float(found[0]["value"][1]) == count


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
