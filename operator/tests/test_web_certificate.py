"""A page with a certificate, as the chart configures it, is reached by the command and over HTTPS alike.

The API server's port-forward, for which there is no kubelet here, is a connection to the page's loopback;
`tests/e2e/test_e2e_dashboard.py` has a real one.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import chart_account
import pytest
from free_ports import free_port
from web_process import serving

from deepcoder_cli.commands.dashboard import PORT
from deepcoder_cli.proxy import Proxy
from deepcoder_operator.kube.client import Kube

KEY = "a-key"


def certificate(directory: Path) -> Path:
    """A folder with a pair for this machine, as a Secret is mounted."""
    directory.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", f"{directory}/tls.key", "-out", f"{directory}/tls.crt", "-days", "2", "-subj", "/CN=page"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True, timeout=30)
    return directory


def who(url: str, trusted: Path | None = None, **headers: str) -> str:
    """As whom the page knows who asks."""
    context = ssl.create_default_context(cafile=str(trusted)) if trusted else None
    request = urllib.request.Request(f"{url}/api/v1/me", headers=headers)
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        return str(json.load(answer)["user"])


@pytest.mark.apiserver
async def test_the_command_and_https_reach_one_page(
    kube: Kube, kubeconfig: Path, helm: str, chart: Path, namespace: str, tmp_path: Path
) -> None:
    objects = chart_account.render(helm, chart, namespace, {"web": {"enabled": True, "tlsSecretName": "page-tls"}})
    web = [o for o in objects if o["metadata"]["name"].endswith("-web")]
    async with chart_account.account(kube, kubeconfig, web, namespace, tmp_path) as account:
        config = account.config
        assert config["port"] == PORT, "the command forwards to the port that speaks no TLS"
        (pod,) = [o["spec"]["template"]["spec"] for o in web if o["kind"] == "Deployment"]
        ports = {p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]}
        (service,) = [o["spec"]["ports"] for o in web if o["kind"] == "Service"]
        assert ports[service[0]["targetPort"]] == config["tlsPort"]
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == config["tlsDirectory"]]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mount["name"]]["secret"]["secretName"] == "page-tls"

        pair, secure = certificate(tmp_path / "tls"), free_port()
        token = await chart_account.token(kube, namespace, account.name)
        await asyncio.to_thread(_both_ways, account, tmp_path, pair, secure, token)


def _both_ways(account: chart_account.Account, directory: Path, pair: Path, secure: int, token: str) -> None:
    name = f"system:serviceaccount:{account.namespace}:{account.name}"
    with serving(account, directory, tlsPort=secure, tlsDirectory=str(pair)) as url:
        port = urlsplit(url).port or 0
        proxy = Proxy(0, KEY, lambda: token, lambda: socket.create_connection(("127.0.0.1", port), 10))
        threading.Thread(target=proxy.serve, daemon=True).start()
        try:
            assert who(f"http://127.0.0.1:{proxy.port}", Cookie=f"deepcoder-{proxy.port}={KEY}") == name
            bearer = {"Authorization": f"Bearer {token}"}
            assert who(f"https://127.0.0.1:{secure}", pair / "tls.crt", **bearer) == name
        finally:
            proxy.close()
