"""The components of the node: the command line, environment and start order of each. Pure.

The result is the specification that `nodeinit`, process 1 of the node, carries out; `nodeinit` decides nothing itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from devcluster.config import (
    API_PORT_INSIDE,
    NODE_IP,
    POD_CIDR,
    SERVICE_CIDR,
    Cluster,
)

_ETCD = "http://127.0.0.1:2379"


@dataclass(frozen=True)
class Component:
    """One process of the node. Those that need the API server start once it reports that it is ready."""

    name: str
    command: list[str]
    needs_api: bool = True
    environment: dict[str, str] = field(default_factory=dict)


def components(cluster: Cluster, programs: dict[str, Path], search_path: str) -> list[Component]:
    """The node's processes in start order; `programs` gives the path of each by name."""
    pki = cluster.pki

    def kubeconfigs(name: str) -> list[str]:
        path = f"{pki}/{name}.kubeconfig"
        return [
            f"--kubeconfig={path}",
            f"--authentication-kubeconfig={path}",
            f"--authorization-kubeconfig={path}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ]

    host_programs = {"PATH": search_path}
    runtime = {"PATH": f"{programs['containerd'].parent}:{search_path}"}  # containerd looks for its shim on PATH
    return [
        Component(
            "etcd",
            [
                str(programs["etcd"]),
                "--name=devcluster",
                "--data-dir=/var/lib/etcd",
                f"--listen-client-urls={_ETCD}",
                f"--advertise-client-urls={_ETCD}",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=devcluster=http://127.0.0.1:2380",
                "--unsafe-no-fsync",  # the state ends with the cluster
                "--log-level=warn",
            ],
            needs_api=False,
        ),
        Component(
            "containerd",
            [str(programs["containerd"]), "--config", f"{cluster.etc}/containerd.toml", "--log-level", "warn"],
            needs_api=False,
            environment=runtime,
        ),
        Component("kube-apiserver", _apiserver(programs["kube-apiserver"], pki), needs_api=False),
        Component(
            "kube-controller-manager",
            [
                str(programs["kube-controller-manager"]),
                *kubeconfigs("kube-controller-manager"),
                "--use-service-account-credentials=true",
                f"--root-ca-file={pki}/ca.crt",
                f"--service-account-private-key-file={pki}/service-accounts.key",
                f"--cluster-signing-cert-file={pki}/ca.crt",
                f"--cluster-signing-key-file={pki}/ca.key",
                "--allocate-node-cidrs=true",
                f"--cluster-cidr={POD_CIDR}",
                f"--node-cidr-mask-size={POD_CIDR.rpartition('/')[2]}",
                "--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",
            ],
        ),
        Component("kube-scheduler", [str(programs["kube-scheduler"]), *kubeconfigs("kube-scheduler")]),
        Component(
            "kubelet",
            [
                str(programs["kubelet"]),
                f"--config={cluster.etc}/kubelet.json",
                f"--kubeconfig={pki}/kubelet.kubeconfig",
                f"--hostname-override={cluster.node_name}",
                f"--node-ip={NODE_IP}",
                "--root-dir=/var/lib/kubelet",
                f"--cert-dir={pki}",
            ],
            environment=host_programs,
        ),
        Component(
            "kube-proxy",
            [str(programs["kube-proxy"]), f"--config={cluster.etc}/kube-proxy.json"],
            environment=host_programs,
        ),
        Component(
            "kube-router",  # enforces NetworkPolicy, which the bridge does not
            [
                str(programs["kube-router"]),
                f"--kubeconfig={pki}/kube-router.kubeconfig",
                f"--hostname-override={cluster.node_name}",
                f"--service-cluster-ip-range={SERVICE_CIDR}",
            ],
            environment=host_programs,
        ),
    ]


def _apiserver(program: Path, pki: Path) -> list[str]:
    return [
        str(program),
        f"--etcd-servers={_ETCD}",
        f"--advertise-address={NODE_IP}",
        "--bind-address=0.0.0.0",
        f"--secure-port={API_PORT_INSIDE}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-accounts.pub",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
        "--enable-aggregator-routing=true",
    ]


def specification(cluster: Cluster, processes: list[Component], library_overlay: tuple[str, str]) -> dict[str, Any]:
    """Everything that process 1 of the node needs to know, as JSON values."""
    return {
        "hostname": cluster.node_name,
        "status_file": str(cluster.node_status),
        "api_ca": str(cluster.pki / "ca.crt"),
        "api_ready": f"https://127.0.0.1:{API_PORT_INSIDE}/readyz",
        # In this order. The node has its own /var and /run; its image store is separate.
        "binds": [[str(cluster.image_store), f"{cluster.var}/lib/containerd"], [str(cluster.var), "/var"]],
        "tmpfs": ["/run"],
        "library_overlay": list(library_overlay),
        "network": [
            # The node's own traffic to Services needs some route. Not every kernel has `dummy` links, so one end of a
            # veth pair serves.
            ["ip", "link", "set", "lo", "up"],
            ["ip", "link", "add", "node0", "type", "veth", "peer", "name", "node0peer"],
            ["ip", "link", "set", "node0peer", "up"],
            ["ip", "addr", "add", f"{NODE_IP}/32", "dev", "node0"],
            ["ip", "link", "set", "node0", "up"],
            ["ip", "route", "add", "default", "dev", "node0"],
        ],
        "network_sysctls": {
            "net/ipv4/ip_forward": "1",
            "net/bridge/bridge-nf-call-iptables": "1",  # Services between pods on the same bridge
        },
        "components": [asdict(process) for process in processes],
    }


def network_policy_rights() -> list[dict[str, Any]]:
    """RBAC objects with the rights of kube-router's identity; kube-router cannot work before they are applied."""
    name = "devcluster:kube-router"
    rules = [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
    ]
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    subject = {"kind": "User", "name": "kube-router", "apiGroup": "rbac.authorization.k8s.io"}
    role = {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"}
    return [
        {**rbac, "kind": "ClusterRole", "rules": rules},
        {**rbac, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [subject]},
    ]
