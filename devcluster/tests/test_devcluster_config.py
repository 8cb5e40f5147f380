"""Configuration files and command lines of the node, and the names they are made of."""

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from devcluster import node, render
from devcluster.components import components, specification
from devcluster.config import Cluster, ConfigError

SYSROOT = Path("/cache/sysroot")
PROGRAMS = {
    name: Path("/cache/bin") / name
    for name in (
        "etcd", "containerd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
        "kube-router",
    )
}  # fmt: skip


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(name="trial", cache=Path("/cache"))


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "a" * 17])
def test_a_name_that_cannot_be_a_cgroup_and_a_host_name_is_refused_with_the_mend(name: str) -> None:
    with pytest.raises(ConfigError, match="use 1 to 16 of"):
        Cluster(name=name)


def test_clusters_of_different_names_share_no_directory_and_no_cgroup() -> None:
    one, two = Cluster("one", Path("/c")), Cluster("two", Path("/c"))
    for attribute in ("state", "cgroup", "image_store", "kubeconfig", "lock", "node_name"):
        assert getattr(one, attribute) != getattr(two, attribute)


def test_clusters_of_one_name_in_two_caches_do_not_take_each_other_for_remains() -> None:
    assert Cluster("main", Path("/one")).cgroup != Cluster("main", Path("/two")).cgroup


def test_containerd_configuration_is_toml_that_pins_the_pause_image(cluster: Cluster) -> None:
    parsed = tomllib.loads(render.containerd(cluster, SYSROOT, "localhost/devcluster/pause:1"))
    images = parsed["plugins"]["io.containerd.cri.v1.images"]
    assert images["pinned_images"]["sandbox"] == "localhost/devcluster/pause:1"
    runc = parsed["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["runc"]["options"]
    assert runc == {"BinaryName": "/cache/sysroot/usr/sbin/runc", "SystemdCgroup": False}


def test_kubelet_keeps_its_pods_in_the_cgroup_that_down_empties(cluster: Cluster) -> None:
    assert json.loads(render.kubelet(cluster))["cgroupRoot"] == f"/{cluster.cgroup}"


def test_kube_proxy_leaves_the_connection_tracking_limits_of_the_machine_alone(cluster: Cluster) -> None:
    conntrack = json.loads(render.kube_proxy(cluster))["conntrack"]
    assert conntrack["maxPerCore"] == 0
    assert conntrack["min"] == 0


def test_only_the_control_plane_starts_before_the_api_server_is_ready(cluster: Cluster) -> None:
    early = [part.name for part in components(cluster, PROGRAMS, "/bin") if not part.needs_api]
    assert early == ["etcd", "containerd", "kube-apiserver"]


def test_containerd_finds_its_shim_beside_itself(cluster: Cluster) -> None:
    part = next(part for part in components(cluster, PROGRAMS, "/usr/bin") if part.name == "containerd")
    assert part.environment["PATH"].split(":")[0] == "/cache/bin"


def test_the_image_store_is_bound_before_var_covers_the_place_it_is_bound_to(cluster: Cluster) -> None:
    binds = specification(cluster, [], ("/lib", "/lib:/cache/lib"))["binds"]
    assert [target for _, target in binds] == [f"{cluster.var}/lib/containerd", "/var"]


def test_the_node_asks_no_proxy_for_its_own_addresses_and_needs_nothing_of_its_starters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server would ask a proxy for the kubelet, for webhooks and for itself, and it reaches none of them. What
    starts the node may have a temporary directory of its own, which it takes along."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("https_proxy", "HTTP_PROXY", "all_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "http://proxy.corp:3128")
    given: list[dict[str, str]] = []

    def launched(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[bytes]:
        given.append(env)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", launched)
    with pytest.raises(node.NodeError):
        node.start(Cluster("trial", tmp_path))
    assert [name for name in given[0] if "proxy" in name.lower()] == []
    assert "TMPDIR" not in given[0]
    assert given[0]["PATH"] == os.environ["PATH"]
