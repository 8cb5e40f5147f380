"""The dashboard of the real cluster in a real browser, opened as users open it.

SCREENSHOTS=FOLDER keeps a picture of each tab; SEEN_RUN=NAME uses an existing run (of `make demo`).
"""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_world import TIMEOUT, World
from kubernetes import client
from playwright.sync_api import Page, expect, sync_playwright

from deepcoder_demo.platform import CHART, RELEASE, apply, helm
from deepcoder_demo.settings import OPERATOR_NAMESPACE, tool
from devcluster import testprograms
from devcluster.config import cache_root

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

VIEWER = "e2e-viewer"
CERTIFICATE = "e2e-page-tls"
PAGE = "deepcoder-operator-web"
"""Its Service."""
TABS = {"overview": "Overview", "curves": "Curves", "samples": "Rollouts", "evaluations": "Evaluations",
        "lineage": "Lineage", "pool": "Judges"}  # fmt: skip


@pytest.fixture
def viewer(world: World) -> Iterator[str]:
    """An account with the right to view the demo's namespace."""
    about = {"name": VIEWER, "namespace": world.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    apply(
        world.cluster,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": about, "roleRef": role,
         "subjects": [{"kind": "ServiceAccount", **about}]},
    )  # fmt: skip
    yield VIEWER
    client.RbacAuthorizationV1Api().delete_namespaced_role_binding(VIEWER, world.namespace, _request_timeout=TIMEOUT)
    world.core.delete_namespaced_service_account(VIEWER, world.namespace, _request_timeout=TIMEOUT)


@contextmanager
def dashboard(world: World, account: str, *run: str) -> Iterator[str]:
    """The address that the command prints, valid while the command runs."""
    command = [tool("kubectl-deepcoder"), "dashboard", *run, "-n", world.namespace, "--no-open"]
    command += ["--service-account", account]
    environment = world.environment | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address + process.stdout.read()
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def certified(world: World, tmp_path: Path) -> Iterator[Path]:
    """The page with a certificate from its own authority, during the test."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", f"{tmp_path}/tls.key", "-out", f"{tmp_path}/tls.crt", "-days", "2", "-subj", "/CN=page"]
    subprocess.run([*command, "-addext", f"subjectAltName=DNS:{PAGE}"], check=True, capture_output=True, timeout=30)
    pair = {name: base64.b64encode((tmp_path / name).read_bytes()).decode() for name in ("tls.key", "tls.crt")}
    about = {"name": CERTIFICATE, "namespace": OPERATOR_NAMESPACE}
    apply(
        world.cluster,
        {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": about, "data": pair},
    )
    words = ("upgrade", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE, "--reuse-values", "--wait")
    helm(world.cluster, *words, "--set", f"web.tlsSecretName={CERTIFICATE}", seconds=300)
    yield tmp_path / "tls.crt"
    helm(world.cluster, *words, "--set", "web.tlsSecretName=", seconds=300)
    world.core.delete_namespaced_secret(CERTIFICATE, OPERATOR_NAMESPACE, _request_timeout=TIMEOUT)


def test_a_page_with_a_certificate_is_opened_by_the_command_and_over_https(
    world: World, viewer: str, certified: Path
) -> None:
    with dashboard(world, viewer) as address, browsing() as page:
        page.goto(address)
        expect(page.get_by_text(f"system:serviceaccount:{world.namespace}:{viewer}")).to_be_visible(timeout=60_000)
    with to_service(world, OPERATOR_NAMESPACE, PAGE, 443) as port:
        trusted = ssl.create_default_context(cafile=str(certified))
        with (
            socket.create_connection(("127.0.0.1", port), 30) as plain,
            trusted.wrap_socket(plain, server_hostname=PAGE) as secure,
        ):
            secure.sendall(f"GET / HTTP/1.0\r\nHost: {PAGE}\r\n\r\n".encode())
            assert b" 200 " in secure.recv(64)


@contextmanager
def to_service(world: World, namespace: str, name: str, port: int) -> Iterator[int]:
    """A local port that kubectl forwards to a Service."""
    command = [world.cluster.kubectl, "port-forward", "-n", namespace, f"svc/{name}", f":{port}"]
    process = subprocess.Popen(command, env=world.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", said)
        assert found, said
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def browsing() -> Iterator[Page]:
    """A page in Chromium; its errors fail the test."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=testprograms.chromium(cache_root()), args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        browser.close()
    assert not complaints, complaints


def test_run_of_the_real_cluster_is_seen_whole(world: World, start_run: Callable[..., str], viewer: str) -> None:
    name = os.environ.get("SEEN_RUN") or start_run("e2e-seen", 6)
    world.wait_for_phase(name, "Complete", 600)
    pictures = Path(os.environ["SCREENSHOTS"]) if "SCREENSHOTS" in os.environ else None
    with dashboard(world, viewer, name) as address, browsing() as page:
        page.goto(address)
        expect(page.get_by_role("heading", name=name)).to_be_visible(timeout=60_000)
        assert "key=" not in page.url, "the key does not stay in the address"
        shows = {
            "overview": lambda: expect(page.get_by_role("cell", name="Complete").first).to_be_visible(),
            "curves": lambda: expect(page.get_by_text(re.compile(r"^Reward, \d+ points"))).to_be_attached(),
            "samples": lambda: expect(
                page.get_by_role("region", name="Rollouts").get_by_role("button").first
            ).to_be_visible(),
            "evaluations": lambda: expect(
                page.get_by_role("region", name="Evaluations").or_(page.get_by_text("Nothing has been evaluated yet."))
            ).to_be_visible(),
            "lineage": lambda: expect(page.get_by_text(re.compile("^All .* links hold"))).to_be_visible(),
            "pool": lambda: expect(page.locator("#panel").get_by_text("SandboxPool").first).to_be_visible(),
        }
        for tab, title in TABS.items():
            page.get_by_role("tab", name=title).click()
            shows[tab]()
            if tab == "samples":
                page.get_by_role("region", name="Rollouts").get_by_role("button").first.click()
                expect(page.get_by_role("region", name="Response")).to_be_visible()
            if pictures is not None:
                page.wait_for_timeout(500)
                page.screenshot(path=pictures / f"dashboard-{tab}.png")
        page.get_by_role("link", name="DeepCoder", exact=True).click()
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
        if pictures is not None:
            page.screenshot(path=pictures / "dashboard-runs.png")
