"""A second cluster beside the first: it works, heals, and leaves nothing behind, whatever was killed before."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devcluster import cgroups, doctor, images, lifecycle, node, ociarchive, ocilayout, procfs, systemimages
from devcluster.artifacts import Artifacts
from devcluster.config import Cluster, cache_root
from devcluster.containerd import ImageStore
from devcluster.kubectl import Kube, wait_for
from devcluster.ociarchive import StaticImage

pytestmark = [pytest.mark.cluster, pytest.mark.root]

NAME = "leaves-nothing"
# Directories that Kubernetes and its container runtime use unless they are told otherwise.
DEFAULT_PLACES = (
    "/etc/cni", "/opt/cni", "/run/containerd", "/run/netns", "/run/runc", "/var/lib/cni", "/var/lib/containerd",
    "/var/lib/etcd", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods", "/usr/libexec/kubernetes",
)  # fmt: skip
NAMESPACES = ("mnt", "net", "pid", "uts", "ipc")


@dataclass(frozen=True)
class Machine:
    """What a cluster could leave on a machine."""

    mounts: frozenset[str]
    links: frozenset[str]
    places: frozenset[str]
    settings: dict[str, str]

    @classmethod
    def now(cls) -> "Machine":
        mountinfo = Path("/proc/self/mountinfo").read_text().splitlines()
        return cls(
            mounts=frozenset(f"{line.split()[4]} {line.partition(' - ')[2]}" for line in mountinfo),
            links=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
            places=frozenset(
                str(path)
                for place in DEFAULT_PLACES
                for path in [Path(place), *Path(place).rglob("*")]
                if path.exists()
            ),
            settings=_settings(),
        )


def _settings() -> dict[str, str]:
    """Every setting of the kernel that does not change by itself, such as a counter does."""
    found = {}
    for path in Path("/proc/sys").rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o222 and "random" not in path.parts:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                found[str(path)] = path.read_text()
    found.pop("/proc/sys/kernel/ns_last_pid", None)
    return found


@pytest.fixture(scope="module")
def artifacts() -> Artifacts:
    found = Artifacts(cache_root(), doctor.go_version())
    found.require()
    return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    chosen = Cluster.named(NAME)
    lifecycle.down(chosen)
    yield chosen
    lifecycle.down(chosen)


def _run_pods(cluster: Cluster, artifacts: Artifacts) -> Kube:
    """Two pods of the one image that every node has."""
    kube = Kube(cluster, artifacts)
    image = systemimages.describe(artifacts)["pause"].reference
    container = {"name": "pause", "image": image, "imagePullPolicy": "Never"}
    content = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "idle"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "idle"}},
            "template": {"metadata": {"labels": {"app": "idle"}}, "spec": {"containers": [container]}},
        },
    }
    kube.kubectl("apply", "-f", "-", stdin=json.dumps(content).encode())
    kube.kubectl("rollout", "status", "deployment/idle", "--timeout=90s", deadline=100)
    return kube


def _namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def _namespaces(cluster: Cluster) -> set[str]:
    """Namespaces of all processes of the cluster that are not the machine's own."""
    found = set()
    for pid in cgroups.processes(cluster.cgroup):
        for kind in NAMESPACES:
            with contextlib.suppress(OSError):
                found.add(_namespace(pid, kind))
    return found - {_namespace("self", kind) for kind in NAMESPACES}


def _holders(namespaces: set[str]) -> list[str]:
    """Command lines of processes that live in any of `namespaces`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for kind in NAMESPACES:
            with contextlib.suppress(OSError):
                if _namespace(process.name, kind) in namespaces:
                    found.append(" ".join(procfs.command_line(int(process.name))))
    return found


def _assert_nothing_is_left(cluster: Cluster, before: Machine, namespaces: set[str]) -> None:
    # A process that has been killed stays in sight until its new parent, the machine's first process, takes note.
    wait_for("every process of the cluster to be gone", lambda: not _holders(namespaces), 30)
    after = Machine.now()
    assert after.mounts == before.mounts
    assert after.links == before.links
    assert after.places == before.places
    assert {name: value for name, value in after.settings.items() if before.settings.get(name, value) != value} == {}
    assert not cgroups.exists(cluster.cgroup)
    assert not cluster.state.exists()


def _kill_nothing(cluster: Cluster) -> None:
    del cluster


def _kill_runtime_and_kubelet(cluster: Cluster) -> None:
    for part in node.components(cluster):
        if part.name in ("containerd", "kubelet"):
            os.kill(part.pid, signal.SIGKILL)


def _kill_the_first_process(cluster: Cluster) -> None:
    process = node.running(cluster)
    assert process is not None
    process.kill()


def _lose_the_record(cluster: Cluster) -> None:
    cluster.node_record.unlink()


@pytest.mark.parametrize("harm", [_kill_nothing, _kill_runtime_and_kubelet, _kill_the_first_process, _lose_the_record])
def test_down_leaves_nothing_of_a_cluster_with_pods(cluster: Cluster, artifacts: Artifacts, harm) -> None:  # type: ignore[no-untyped-def]
    before = Machine.now()
    lifecycle.up(cluster, artifacts)
    _run_pods(cluster, artifacts)
    namespaces = _namespaces(cluster)
    assert len(namespaces) >= len(NAMESPACES) + 2  # the node's own, and at least a network of each pod
    harm(cluster)
    lifecycle.down(cluster)
    _assert_nothing_is_left(cluster, before, namespaces)


def test_down_leaves_nothing_of_an_up_that_was_killed_half_way(cluster: Cluster) -> None:
    before = Machine.now()
    starting = subprocess.Popen([sys.executable, "-m", "devcluster", "--name", NAME, "up"], stderr=subprocess.DEVNULL)
    wait_for("the node to be recorded", lambda: node.running(cluster) is not None, 60, pause=0.01)
    starting.kill()
    starting.wait()
    namespaces = _namespaces(cluster)
    lifecycle.down(cluster)
    _assert_nothing_is_left(cluster, before, namespaces)


def test_a_component_that_is_killed_comes_back_and_pods_survive_it(cluster: Cluster, artifacts: Artifacts) -> None:
    lifecycle.up(cluster, artifacts)
    kube = _run_pods(cluster, artifacts)
    pods = kube.kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.uid}")
    _kill_runtime_and_kubelet(cluster)
    wait_for(
        "both to be restarted",
        lambda: (
            {part.name for part in node.components(cluster) if part.restarts == 1 and part.pid}
            == {"containerd", "kubelet"}
        ),
        60,
    )
    wait_for("the cluster to be healthy", lambda: not lifecycle.health(cluster, artifacts).faults, 60)
    kube.kubectl("rollout", "status", "deployment/idle", "--timeout=60s", deadline=70)
    assert kube.kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.uid}") == pods


def test_up_on_a_healthy_cluster_changes_nothing_and_on_a_dead_one_starts_anew(
    cluster: Cluster, artifacts: Artifacts
) -> None:
    lifecycle.up(cluster, artifacts)
    first = node.running(cluster)
    lifecycle.up(cluster, artifacts)
    assert node.running(cluster) == first
    _kill_the_first_process(cluster)
    assert lifecycle.health(cluster, artifacts).faults == ("the node is not running",)
    lifecycle.up(cluster, artifacts)
    assert lifecycle.health(cluster, artifacts).faults == ()
    assert node.running(cluster) != first


def test_two_clusters_side_by_side_leave_the_machine_as_it_was_before_the_first(
    cluster: Cluster, artifacts: Artifacts
) -> None:
    other = Cluster.named(f"{NAME}-2")
    lifecycle.down(other)
    before = Machine.now()
    lifecycle.up(cluster, artifacts)
    try:
        lifecycle.up(other, artifacts)
        namespaces = _namespaces(cluster) | _namespaces(other)
        lifecycle.down(cluster)
        assert lifecycle.health(other, artifacts).faults == ()
    finally:
        lifecycle.down(other)
    _assert_nothing_is_left(cluster, before, namespaces)
    _assert_nothing_is_left(other, before, namespaces)


def _layout(directory: Path, content: bytes) -> str:
    """An OCI layout of one image that holds `content`; returns its name."""
    (directory / "program").write_bytes(content)
    image = StaticImage(f"localhost/devcluster/adopted:{hashlib.sha256(content).hexdigest()[:8]}",
                        {"/program": directory / "program"}, ["/program"])  # fmt: skip
    ociarchive.write(image, directory / "image.tar")
    shutil.unpack_archive(directory / "image.tar", directory)
    index = json.loads((directory / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": image.reference}
    (directory / "index.json").write_text(json.dumps(index))
    return image.reference


def test_a_large_layer_is_taken_into_the_cluster_without_a_copy_and_outlives_its_removal(
    cluster: Cluster, artifacts: Artifacts
) -> None:
    lifecycle.up(cluster, artifacts)
    process = node.running(cluster)
    assert process is not None
    store = ImageStore(process, artifacts.programs()["ctr"], cluster.image_store)
    with tempfile.TemporaryDirectory(dir=cluster.state) as directory:  # of the same disk as the store
        reference = _layout(Path(directory), os.urandom(3 << 20))
        blobs = ocilayout.blobs(Path(directory), reference)
        layer = max(blobs.values(), key=lambda path: path.stat().st_size)
        images.transfer(Path(directory), reference, store)
        assert reference in store.references()
        assert set(blobs) <= store.blobs()
        assert layer.stat().st_nlink == 2
        content = layer.read_bytes()
        store.remove([reference])
        assert not set(blobs) & store.blobs()
        assert layer.stat().st_nlink == 1
        assert layer.read_bytes() == content


def test_down_of_what_is_not_there_is_no_error(cluster: Cluster) -> None:
    lifecycle.down(cluster)
    assert not cluster.state.exists()
