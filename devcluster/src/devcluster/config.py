"""Names, addresses and paths of one cluster and of the cache that all clusters share.

Everything here is a value and nothing is created, so any module can ask for a path. It fails only for a name that
cannot be a cgroup, a host name and a directory at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from devcluster import content_hash

REPOSITORY = Path(__file__).resolve().parents[3]
"""Root of the source tree: Dockerfiles, constraints, charts and Go modules are read from it."""

DOCKERFILES = {
    "operator": "operator/Dockerfile",
    "sandbox": "sandbox_image/Dockerfile",
    "trainer": "trainer_image/Dockerfile",
}
"""The project's images by name, with their Dockerfiles."""
IMAGE_PREFIX = "localhost/deepcoder/"

KUBERNETES_VERSION = "v1.36.3"
GO_MINOR = "1.26"

NODE_IP = "10.77.0.1"
POD_CIDR = "10.78.0.0/24"
SERVICE_CIDR = "10.79.0.0/16"
KUBERNETES_SERVICE_IP = "10.79.0.1"
DNS_SERVICE_IP = "10.79.0.10"
S3_SERVICE_IP = "10.79.0.70"
API_PORT_INSIDE = 6443
CLUSTER_DOMAIN = "cluster.local"

_DEFAULT_CACHE = Path.home() / ".cache" / "deepcoder"

CGROUP_PREFIX = "devcluster-"
DEFAULT_NAME = "main"
DEFAULT_API_PORT = 16443
DEFAULT_S3_PORT = 17070

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?")


class ConfigError(ValueError):
    """A setting that cannot work; the message names it and the fix."""


def cache_root() -> Path:
    """Directory of everything that is expensive to make: $DEEPCODER_CACHE, or ~/.cache/deepcoder."""
    chosen = os.environ.get("DEEPCODER_CACHE")
    return Path(chosen).resolve() if chosen else _DEFAULT_CACHE


@dataclass(frozen=True)
class Cluster:
    """Where one cluster keeps its state; `down` removes all of it except the image store."""

    name: str = DEFAULT_NAME
    cache: Path = Path()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r}: use 1 to 16 of a-z, 0-9 and '-', neither first nor last a '-'")

    @classmethod
    def named(cls, name: str = DEFAULT_NAME) -> Cluster:
        """The cluster `name` in the default cache."""
        return cls(name=name, cache=cache_root())

    @property
    def state(self) -> Path:
        """All state from one `up` to the next `down`."""
        return self.cache / "devcluster" / self.name

    @property
    def cgroup(self) -> str:
        """Name of the cgroup, directly under the root of each hierarchy, that holds every process of the cluster.

        Cgroups belong to the machine: a cluster must not mistake one of the same name in another cache for its remains.
        """
        elsewhere = "" if self.cache == _DEFAULT_CACHE else f"-{content_hash.digest(str(self.cache))[:8]}"
        return f"{CGROUP_PREFIX}{self.name}{elsewhere}"

    @property
    def node_name(self) -> str:
        """Name of the node and its host name."""
        return "devcluster" if self.name == DEFAULT_NAME else f"devcluster-{self.name}"

    @property
    def image_store(self) -> Path:
        """containerd's content and snapshots: survives `down`, because loading gigabytes again takes long."""
        return self.cache / "containerd" / self.name

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, for use on this machine."""
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Certificates, keys and the components' kubeconfigs."""
        return self.state / "pki"

    @property
    def etc(self) -> Path:
        """Configuration files of the node's components."""
        return self.state / "etc"

    @property
    def var(self) -> Path:
        """The directory that the node's processes see as /var."""
        return self.state / "var"

    @property
    def logs(self) -> Path:
        """Logs of process 1 of the node and of each component."""
        return self.var / "log"

    @property
    def node_record(self) -> Path:
        """Record of the node's first process."""
        return self.state / "node.json"

    @property
    def node_status(self) -> Path:
        """The status of the components, written by that process."""
        return self.state / "status.json"

    @property
    def node_spec(self) -> Path:
        """The specification that this process carries out."""
        return self.state / "spec.json"

    @property
    def forwards(self) -> Path:
        """Records of the loopback forwards."""
        return self.state / "forwards"

    @property
    def lock(self) -> Path:
        """Held by `up` and `down`."""
        return self.cache / "locks" / f"cluster-{self.name}"
