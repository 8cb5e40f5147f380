"""A real API server for tests: etcd, kube-apiserver and kube-controller-manager on loopback, without a node.

Uids, conflicts, CEL, pruning, garbage collection and token reviews are the real ones; pods are objects that nobody
runs, so that tests play the kubelet. Apart from the development cluster, so that no operator installed there takes
part. What service accounts ask for is in its audit log (`api_audit`). About five seconds to start, half a gigabyte.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import api_audit
from free_ports import free_port

from devcluster import doctor, pki
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

START_SECONDS = 150.0
_PR_SET_PDEATHSIG = 1
_UNWATCHED = tuple(
    f"{plural}.{group}".removesuffix(".")
    for group, plurals in {
        "": "persistentvolumes podtemplates replicationcontrollers",
        "admissionregistration.k8s.io": "mutatingadmissionpolicies mutatingadmissionpolicybindings "
        "validatingadmissionpolicies validatingadmissionpolicybindings",
        "apps": "controllerrevisions daemonsets statefulsets",
        "batch": "cronjobs",
        "certificates.k8s.io": "certificatesigningrequests",
        "discovery.k8s.io": "endpointslices",
        "flowcontrol.apiserver.k8s.io": "flowschemas prioritylevelconfigurations",
        "networking.k8s.io": "ingressclasses ipaddresses servicecidrs",
        "resource.k8s.io": "deviceclasses resourceclaims resourceclaimtemplates resourceslices",
        "storage.k8s.io": "csidrivers csinodes csistoragecapacities storageclasses volumeattachments "
        "volumeattributesclasses",
    }.items()
    for plural in plurals.split()
)
"""Kinds that neither the operator nor a test watches. The API server keeps no cache of them: each cache wakes it once a
second, and those of all kinds were a third of the CPU time of an idle one."""


def programs() -> dict[str, Path] | None:
    """The built programs by name, None if some have not been built."""
    found = Artifacts(cache_root(), doctor.go_version()).programs()
    wanted = {name: found[name] for name in ("etcd", "kube-apiserver", "kube-controller-manager")}
    return wanted if all(path.exists() for path in wanted.values()) else None


@contextmanager
def running(
    directory: Path, paths: dict[str, Path], *, autoscaled: bool = False, growth_percent: int = 400
) -> Iterator[Path]:
    """Start all, yield the administrator's kubeconfig, and end all; `autoscaled`: with autoscalers, and metrics that
    another server may serve. Heaps may grow by so much before they are looked through for garbage: at Go's 100 a
    quarter of the CPU time goes into that."""
    client, peer, secure = (free_port() for _ in range(3))
    server = f"https://127.0.0.1:{secure}"
    keys = directory / "pki"
    pki.create(keys, "node", "127.0.0.1", "10.96.0.1", server)
    kubeconfig = directory / "kubeconfig"
    pki.write_kubeconfig(keys, "admin", server, kubeconfig)
    (directory / "audit-policy.json").write_text(json.dumps(api_audit.POLICY))
    with ExitStack() as stack:
        start = partial(_start, stack, directory, environment=os.environ | {"GOGC": str(growth_percent)})
        start(_etcd(paths["etcd"], directory, client, peer))
        api = start(_apiserver(paths["kube-apiserver"], directory, client, secure, autoscaled))
        _wait_ready(api, directory, server, keys)
        start(_controllers(paths["kube-controller-manager"], keys, autoscaled))
        try:
            yield kubeconfig
        finally:
            api_audit.note(kubeconfig)


def _etcd(program: Path, directory: Path, client: int, peer: int) -> list[str]:
    return [
        str(program),
        "--name=test",
        f"--data-dir={directory}/etcd",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=test=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
        "--log-level=error",
    ]


def _apiserver(program: Path, directory: Path, etcd: int, port: int, autoscaled: bool) -> list[str]:
    keys = directory / "pki"
    front = f"{keys}/front-proxy-client"
    aggregated = [
        f"--requestheader-client-ca-file={keys}/front-proxy-ca.crt",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={front}.crt",
        f"--proxy-client-key-file={front}.key",
    ]
    return [
        str(program),
        *(aggregated if autoscaled else ()),
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        f"--watch-cache-sizes={','.join(f'{kind}#0' for kind in _UNWATCHED)}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--endpoint-reconciler-type=none",
        f"--client-ca-file={keys}/ca.crt",
        f"--tls-cert-file={keys}/apiserver.crt",
        f"--tls-private-key-file={keys}/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={keys}/service-accounts.pub",
        f"--service-account-signing-key-file={keys}/service-accounts.key",
        f"--audit-policy-file={directory}/audit-policy.json",
        f"--audit-log-path={api_audit.log_of(directory / 'kubeconfig')}",
    ]


def _controllers(program: Path, keys: Path, autoscaled: bool) -> list[str]:
    kubeconfig = keys / "kube-controller-manager.kubeconfig"
    scalers = ",horizontal-pod-autoscaler-controller" if autoscaled else ""
    return [
        str(program),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port()}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={keys}/ca.crt",
        f"--service-account-private-key-file={keys}/service-accounts.key",
        # Without the collector of finished pods and node life cycle: there is no node, and tests play the kubelet.
        "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,disruption-controller,"
        "root-ca-certificate-publisher-controller,clusterrole-aggregation-controller" + scalers,
        "--horizontal-pod-autoscaler-sync-period=1s",
    ]


def _start(
    stack: ExitStack, directory: Path, command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    log = stack.enter_context((directory / f"{Path(command[0]).name}.log").open("wb"))
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent
    )
    stack.callback(_end, process)
    return process


def _die_with_parent() -> None:
    """No server outlives a test run that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _wait_ready(api: subprocess.Popen[bytes], directory: Path, server: str, keys: Path) -> None:
    """Until /readyz answers; a server that ends says why in its log."""
    trust = ssl.create_default_context(cafile=keys / "ca.crt")
    trust.load_cert_chain(keys / "admin.crt", keys / "admin.key")
    end = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError), urllib.request.urlopen(f"{server}/readyz", timeout=2, context=trust):
            return
        if api.poll() is not None or time.monotonic() > end:
            log = (directory / "kube-apiserver.log").read_text(errors="replace")
            raise RuntimeError(f"kube-apiserver is not ready:\n{log[-4000:]}")
        time.sleep(0.2)
