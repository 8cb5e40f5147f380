"""Configuration files of the node's components, as text. Pure.

Paths are as the node's processes see them: /var and /run are the node's own (see `nodeinit`). JSON is used wherever the
reader takes YAML.
"""

from __future__ import annotations

import json
from pathlib import Path

from devcluster.config import (
    CLUSTER_DOMAIN,
    DNS_SERVICE_IP,
    POD_CIDR,
    Cluster,
)

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CNI_CONFIG = "10-bridge.conflist"


def containerd(cluster: Cluster, sysroot: Path, pause_image: str) -> str:
    """containerd's config.toml. `restrict_oom_score_adj`: lowering a score takes CAP_SYS_RESOURCE, perhaps missing."""
    return f"""\
version = 3
root = '/var/lib/containerd'
state = '/run/containerd/state'
disabled_plugins = [
  'io.containerd.internal.v1.tracing', 'io.containerd.tracing.processor.v1.otlp', 'io.containerd.nri.v1.nri',
]
[grpc]
  address = '{CONTAINERD_SOCKET}'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{pause_image}'
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  enable_cdi = false
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '{sysroot}/usr/sbin/runc'
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{sysroot}/usr/lib/cni']
    conf_dir = '{cluster.etc}/cni'
[plugins.'io.containerd.internal.v1.opt']
  path = '/var/lib/containerd-opt'
"""


def cni() -> str:
    """The pod network: one bridge and addresses from the node's range, without masquerading, as there is no way out."""
    plugin = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni-ipam",
            "ranges": [[{"subnet": POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "1.0.0", "name": "devcluster", "plugins": [plugin]}, indent=1)


def kubelet(cluster: Cluster) -> str:
    """KubeletConfiguration. Nothing is reserved: on two cores, small requests must fit next to the system pods."""
    pki = cluster.pki
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": "0.0.0.0",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{pki}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{pki}/kubelet-serving.crt",
            "tlsPrivateKeyFile": f"{pki}/kubelet-serving.key",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cluster.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": ["pods"],
            "clusterDNS": [DNS_SERVICE_IP],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": f"{cluster.etc}/resolv.conf",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": False,
            "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "maxPods": 110,
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "5s",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        },
        indent=1,
    )


def kube_proxy(cluster: Cluster) -> str:
    """KubeProxyConfiguration. Connection tracking limits belong to the whole machine and are left alone."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": f"{cluster.pki}/kube-proxy.kubeconfig"},
            "clusterCIDR": POD_CIDR,
            "hostnameOverride": cluster.node_name,
            "bindAddress": "0.0.0.0",
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
            "nodePortAddresses": ["primary"],
        },
        indent=1,
    )


def files(cluster: Cluster, sysroot: Path, pause_image: str) -> dict[str, str]:
    """All configuration files by their path under the cluster's `etc`."""
    return {
        "containerd.toml": containerd(cluster, sysroot, pause_image),
        f"cni/{CNI_CONFIG}": cni(),
        "kubelet.json": kubelet(cluster),
        "kube-proxy.json": kube_proxy(cluster),
        "resolv.conf": "options ndots:5\n",
    }
