"""Builds the programs of the cluster from Go modules, one directory of the cache for each set of inputs.

A program's inputs are its module under `devcluster/go` (go.mod, go.sum, sources), its flags and Go's version. A build
goes into a temporary directory and is renamed when complete, so that a killed build leaves nothing incomplete. Fails
with the compiler's message if a module does not build.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from devcluster import content_hash, staging
from devcluster.command import run
from devcluster.config import KUBERNETES_VERSION, REPOSITORY
from devcluster.progress import step

GO_MODULES = REPOSITORY / "devcluster" / "go"
_BUILD_SECONDS = 3600.0
_ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
# The compiler's garbage collection takes a quarter of the build time. Let it wait longer, within bounds.
_LESS_COLLECTION = {"GOGC": "400", "GOMEMLIMIT": "3GiB"}
_KUBERAY_MODULE = "github.com/ray-project/kuberay/ray-operator"


@dataclass(frozen=True)
class GoProgram:
    """One module under `devcluster/go` and the packages built from it into one directory."""

    module: str
    packages: tuple[str, ...] = (".",)
    tags: str = ""
    ldflags: str = ""
    also_called: tuple[str, ...] = ()
    """Further names of the (single) program, which behaves according to the name it is started under."""
    manifests_of: str = ""
    """Module whose source has `manifests`, which must be applied to a cluster before the program can work."""
    manifests: tuple[str, ...] = ()


PROGRAMS = (
    GoProgram("pause"),
    GoProgram(
        "kubernetes",
        tags="providerless",
        ldflags=f"-X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}",
        also_called=("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"),
    ),
    GoProgram(
        "kuberay",
        packages=(_KUBERAY_MODULE,),
        manifests_of=_KUBERAY_MODULE,
        manifests=("config/crd/bases/*.yaml", "config/rbac/role.yaml"),
    ),
    GoProgram(
        "containerd",
        packages=tuple(
            f"github.com/containerd/containerd/v2/cmd/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        tags="no_btrfs no_devmapper no_tracing no_zfs",
    ),
    GoProgram("etcd", packages=("go.etcd.io/etcd/server/v3",)),
    GoProgram("versitygw"),
    GoProgram("coredns"),
    GoProgram("kube-router"),
)


OPTIONAL = (
    GoProgram(
        "kueue",
        packages=("sigs.k8s.io/kueue/cmd/kueue",),
        manifests_of="sigs.k8s.io/kueue",
        manifests=("config/components/crd/bases/*.yaml", "config/components/rbac/role.yaml"),
    ),
    GoProgram(
        "keda",
        packages=("github.com/kedacore/keda/v2/cmd/operator", "github.com/kedacore/keda/v2/cmd/adapter"),
        manifests_of="github.com/kedacore/keda/v2",
        manifests=("config/crd/bases/*.yaml", "config/rbac/role.yaml"),
    ),
    GoProgram("registry", packages=("github.com/distribution/distribution/v3/cmd/registry",)),
)
"""Built only when named: only a few tests need them, and they take minutes (KEDA half an hour on a busy machine)."""


def key(program: GoProgram, go_version: str, modules: Path = GO_MODULES) -> str:
    """Content hash of everything that determines the result of building `program`."""
    flags = (program.packages, program.tags, program.ldflags, program.also_called, program.manifests)
    return content_hash.tree_digest(modules, [program.module], go_version, repr(flags))


def directory(program: GoProgram, cache: Path, go_version: str) -> Path:
    """Directory of the programs built from `program`, whether or not it exists yet."""
    return cache / "bin" / f"{program.module}-{key(program, go_version)}"


def built(cache: Path, go_version: str) -> list[Path]:
    """All programs that have been built, including optional ones."""
    places = [directory(program, cache, go_version) for program in (*PROGRAMS, *OPTIONAL)]
    files = [path for place in places if place.is_dir() for path in sorted(place.iterdir())]
    return [path for path in files if path.is_file() and not path.is_symlink()]


def build(program: GoProgram, cache: Path, go_version: str) -> Path:
    """Build `program` unless it exists; return its directory."""
    final = directory(program, cache, go_version)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    source = GO_MODULES / program.module
    scratching = staging.making(cache, f"scratch-{final.name}")
    with step(f"build {program.module}"), staging.making(cache, final.name) as making, scratching as scratch:
        making.mkdir()
        scratch.mkdir()
        output = f"{making}{os.sep}" if len(program.packages) > 1 else str(making / program.module)
        ldflags = f"-s -w {program.ldflags}".strip()
        options = ["-trimpath", "-tags", program.tags, "-ldflags", ldflags, "-o", output]
        run(
            ["nice", "-n", "10", "go", "build", *options, *program.packages],
            deadline=_BUILD_SECONDS,
            env={**_ENVIRONMENT, **_LESS_COLLECTION, "GOTMPDIR": str(scratch)},
            cwd=source,
            log=cache / "logs" / f"go-{program.module}.log",
            contained=True,
        )
        for name in program.also_called:
            (making / name).symlink_to(program.module)
        if program.manifests:
            _copy_manifests(program, making / "manifests")
        making.chmod(0o755)
        making.rename(final)
    return final


def _copy_manifests(program: GoProgram, target: Path) -> None:
    """Copy the program's manifests from the module cache, where `go list` finds its source."""
    found = run(
        ["go", "list", "-m", "-f", "{{.Dir}}", program.manifests_of],
        deadline=60,
        env=_ENVIRONMENT,
        cwd=GO_MODULES / program.module,
    )
    target.mkdir()
    for pattern in program.manifests:
        for manifest in Path(found.strip()).glob(pattern):
            shutil.copyfile(manifest, target / manifest.name)
