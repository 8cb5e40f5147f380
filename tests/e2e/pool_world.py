"""A SandboxPool on the real cluster and pods that send it programs, for the tests of pools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from e2e_world import GROUP, TIMEOUT, VERSION, World, wait_until

from deepcoder_demo.platform import delete_and_wait

POOL = "e2e-judges"
SELECTOR = f"deepcoder.dev/pool={POOL}"
READY_SECONDS = 120

CALLER = """
import concurrent.futures, json, socket, sys, time, urllib.request

def reach(host):
    # The judge's DNS name and route appear shortly after the judge is ready.
    deadline = time.monotonic() + 20
    while True:
        try:
            found = {a[4][0] for a in socket.getaddrinfo(host, 8080, type=socket.SOCK_STREAM)}
            for address in found:
                socket.create_connection((address, 8080), 2).close()
            return sorted(found)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)

host, count, at_once, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
token = open("/token/token").read().strip()
addresses = reach(host)
code = f"import time\\nend = time.time() + {seconds}\\nwhile time.time() < end: pass\\nprint(int(input()) + 1)"

def judge(i):
    body = {"id": f"e2e-{i}", "code": code, "time_limit_s": 60, "tests": [{"input": "1", "output": "2"}]}
    headers = {"Authorization": "Bearer " + token, "X-Deepcoder-Run": "demo/e2e/00000000"}
    url = f"http://{addresses[i % len(addresses)]}:8080/v1/judge"
    began = time.monotonic()
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    passed = json.load(urllib.request.urlopen(request, timeout=240))["passed"]
    return passed, time.monotonic() - began

with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
    results = list(threads.map(judge, range(count)))
print(json.dumps({"passed": [r[0] for r in results], "seconds": sorted(r[1] for r in results)}))
"""


def remove_pool(world: World) -> None:
    """Remove the pool; also before a test, because a killed one leaves it."""
    delete_and_wait(world.cluster, "sandboxpool", POOL, world.namespace, seconds=READY_SECONDS)
    wait_until("the judges are gone", lambda: not judges(world), READY_SECONDS, lambda: judges(world))


@contextmanager
def pool_of(world: World, judges: int, **spec: Any) -> Iterator[str]:
    """Create a pool of that many small judges with one slot each, and wait until they are ready."""
    judge = {"name": "judge", "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}}
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "SandboxPool",
        "metadata": {"name": POOL, "namespace": world.namespace},
        "spec": {"slotsPerPod": 1, "maxReplicas": 3, "template": {"spec": {"containers": [judge]}}} | spec,
    }
    remove_pool(world)
    try:
        world.objects.create_namespaced_custom_object(
            GROUP, VERSION, world.namespace, "sandboxpools", body, _request_timeout=TIMEOUT
        )
        ready(world, judges)
        yield POOL
    finally:
        remove_pool(world)


def ready(world: World, replicas: int, seconds: float = READY_SECONDS) -> None:
    """Wait until that many judges are ready."""
    wait_until(
        f"{replicas} judges are ready",
        lambda: status(world).get("readyReplicas") == replicas,
        seconds,
        lambda: status(world),
    )


def status(world: World) -> dict[str, Any]:
    """Of the pool."""
    found = world.objects.get_namespaced_custom_object(
        GROUP, VERSION, world.namespace, "sandboxpools", POOL, _request_timeout=TIMEOUT
    )
    return dict(found.get("status") or {})


def judges(world: World) -> list[str]:
    """Names of its pods."""
    found = world.core.list_namespaced_pod(world.namespace, label_selector=SELECTOR, _request_timeout=TIMEOUT)
    return [p.metadata.name for p in found.items]


def call(
    world: World, name: str, labels: dict[str, str], programs: int, *, at_once: int | None = None, seconds: float = 3
) -> None:
    """A pod that sends programs of that many seconds to the pool's judges, all at once by default."""
    host = f"{POOL}-judge.{world.namespace}.svc"
    arguments = [host, str(programs), str(at_once or programs), str(seconds)]
    volume = {"name": "token", "secret": {"secretName": f"{POOL}-token"}}
    start_pod(world, name, labels, ["python3", "-c", CALLER, *arguments], volume)


def start_pod(
    world: World,
    name: str,
    labels: dict[str, str],
    command: list[str],
    volume: dict[str, Any],
    image: str | None = None,
) -> None:
    """A pod that meets the restricted standard, by default with the judge's image, and a volume at /token."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    body = {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "caller",
                    "image": image or world.cluster.images.sandbox,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "securityContext": security,
                    "volumeMounts": [{"name": "token", "mountPath": "/token"}],
                }
            ],
            "volumes": [volume],
        },
    }
    delete_and_wait(world.cluster, "pod", name, world.namespace, seconds=READY_SECONDS)  # of a test that was killed
    world.core.create_namespaced_pod(world.namespace, body, _request_timeout=TIMEOUT)


def finished(world: World, name: str) -> str | None:
    """How a pod ended; None until then."""
    phase = world.core.read_namespaced_pod(name, world.namespace, _request_timeout=TIMEOUT).status.phase
    return phase if phase in ("Succeeded", "Failed") else None


def output(world: World, name: str) -> str:
    """The output of a pod."""
    log: str = world.core.read_namespaced_pod_log(name, world.namespace, _request_timeout=TIMEOUT)
    return log
