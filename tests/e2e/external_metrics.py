"""A server of external metrics in a pod, in place of KEDA's: the load of a pool, as autoscalers request it.

KEDA's operator creates a HorizontalPodAutoscaler with an external metric, and its metrics server serves the API
`external.metrics.k8s.io`. Kubernetes' own autoscaler then scales the pool, through `/scale`. The server here serves
the same API behind the API server's aggregator, from the judges' own /metrics.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from e2e_world import TIMEOUT, World, wait_until
from kubernetes import client
from pool_world import POOL, start_pod

from devcluster.pki import Authority

METRIC = "deepcoder-programs"
NAME = "e2e-metrics"
_GROUP, _VERSION = "external.metrics.k8s.io", "v1beta1"
_PORT = 6443
_SECONDS = 120

_SERVER = """
import datetime, http.server, json, re, socket, ssl, sys, urllib.request
judges, group, version, metric = sys.argv[1:5]

def load():
    # Programs at all judges, waiting or being judged: the sum that a Prometheus query would compute.
    try:
        addresses = {a[4][0] for a in socket.getaddrinfo(judges, 8080, type=socket.SOCK_STREAM)}
    except OSError:
        return 0
    text = "".join(urllib.request.urlopen(f"http://{a}:8080/metrics", timeout=5).read().decode() for a in addresses)
    lines = re.findall(r"^deepcoder_sandbox_(?:busy_slots|queued_submissions) (\\S+)$", text, re.MULTILINE)
    return sum(map(float, lines))

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        about = {"apiVersion": f"{group}/{version}", "kind": "ExternalMetricValueList", "metadata": {}}
        if f"/{metric}" in self.path:
            now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            item = {"metricName": metric, "metricLabels": {}, "timestamp": now, "value": str(round(load()))}
            body = about | {"items": [item]}
        else:
            about = {"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": f"{group}/{version}"}
            body = about | {"resources": []}
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/token/tls.crt", "/token/tls.key")
server = http.server.ThreadingHTTPServer(("", int(sys.argv[5])), Answer)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@contextmanager
def served(world: World) -> Iterator[str]:
    """Serve the metric; yields its name."""
    services = client.ApiregistrationV1Api()
    _remove(world)
    try:
        authority = _keys(world)
        command = ["python3", "-c", _SERVER, f"{POOL}-judge.{world.namespace}.svc", _GROUP, _VERSION, METRIC]
        labels = {"app": NAME, "deepcoder.dev/run": NAME}  # judges admit pods of runs
        start_pod(world, NAME, labels, [*command, str(_PORT)], {"name": "token", "secret": {"secretName": NAME}})
        port = {"port": 443, "targetPort": _PORT}
        service = {"metadata": {"name": NAME}, "spec": {"selector": {"app": NAME}, "ports": [port]}}
        world.core.create_namespaced_service(world.namespace, service, _request_timeout=TIMEOUT)
        spec = {
            "group": _GROUP,
            "version": _VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": NAME, "namespace": world.namespace},
            "caBundle": base64.b64encode(authority).decode(),
        }
        body = {"metadata": {"name": f"{_VERSION}.{_GROUP}"}, "spec": spec}
        services.create_api_service(body, _request_timeout=TIMEOUT)
        wait_until("external metrics are served", _available, _SECONDS)
        yield METRIC
    finally:
        _remove(world)


def _available() -> bool:
    found = client.ApiregistrationV1Api().read_api_service(f"{_VERSION}.{_GROUP}", _request_timeout=TIMEOUT)
    return any(c.type == "Available" and c.status == "True" for c in found.status.conditions or ())


def _keys(world: World) -> bytes:
    """Store the server's certificate and key in a Secret; return its authority's certificate."""
    with TemporaryDirectory() as made:
        directory = Path(made)
        Authority(directory, "e2e-metrics-ca", "ca").issue("tls", NAME, serves=[f"{NAME}.{world.namespace}.svc"])
        data = {name: (directory / name).read_text() for name in ("tls.crt", "tls.key")}
        secret = {"metadata": {"name": NAME}, "stringData": data}
        world.core.create_namespaced_secret(world.namespace, secret, _request_timeout=TIMEOUT)
        return (directory / "ca.crt").read_bytes()


def _remove(world: World) -> None:
    """Remove the objects; also before a test, because a killed one leaves them."""
    core = world.core
    for delete in (
        lambda: client.ApiregistrationV1Api().delete_api_service(f"{_VERSION}.{_GROUP}", _request_timeout=TIMEOUT),
        lambda: core.delete_namespaced_service(NAME, world.namespace, _request_timeout=TIMEOUT),
        lambda: core.delete_namespaced_secret(NAME, world.namespace, _request_timeout=TIMEOUT),
        lambda: core.delete_namespaced_pod(NAME, world.namespace, grace_period_seconds=0, _request_timeout=TIMEOUT),
    ):
        try:
            delete()
        except client.ApiException as error:
            if error.status != 404:
                raise
