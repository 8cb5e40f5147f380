"""What the machine lacks is said at once, each with its mend."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_port

from devcluster import cgroups, doctor
from devcluster.doctor import Facts, problems

GOOD = Facts(
    root=True,
    machine="x86_64",
    debian_version="12",
    kernel=(6, 1),
    go_version="go1.26.8",
    free_disk=80 << 30,
    disk_needed=25 << 30,
    memory=24 << 30,
    cache=Path("/root/.cache/deepcoder"),
    missing_programs=(),
    missing_filesystems=(),
    bridge_netfilter=True,
    missing_controllers=(),
    cgroups_writable=True,
    read_only=(),
    taken_ports=(),
)


def test_a_fit_machine_has_no_problems() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"root": False}, "sudo"),
        ({"machine": "aarch64"}, "aarch64"),
        ({"debian_version": "13"}, "Debian 12"),
        ({"debian_version": ""}, "unknown"),
        ({"kernel": (5, 4)}, "5.4"),
        ({"go_version": ""}, "Install Go 1.26"),
        ({"go_version": "go1.27.1"}, "malformed OpenAPI"),
        ({"go_version": "go1.25.3"}, "go1.25.3"),
        ({"free_disk": 3 << 30}, "DEEPCODER_CACHE"),
        ({"memory": 2 << 30}, "2.0 GiB of memory"),
        ({"cache": Path("/var/cache/deepcoder")}, "outside /var"),
        ({"missing_programs": ("ip", "perl")}, "apt-get install iproute2 perl"),
        ({"missing_filesystems": ("overlay",)}, "modprobe overlay"),
        ({"bridge_netfilter": False}, "modprobe br_netfilter"),
        ({"missing_controllers": ("memory", "pids")}, "memory, pids are not mounted under /sys/fs/cgroup"),
        ({"missing_controllers": ("memory",), "cgroups_writable": False}, "cgroup_enable=memory"),
        ({"cgroups_writable": False}, "--privileged"),
        ({"cache": Path("/home/jane doe/.cache/deepcoder")}, "a space or another character"),
        ({"cache": Path("/data/a:b")}, "Set DEEPCODER_CACHE to a directory of letters"),
        ({"read_only": (doctor.Place(Path("/root/.cache/uv"), "UV_CACHE_DIR"),)}, "Set UV_CACHE_DIR to a directory"),
        ({"taken_ports": (16443,)}, "16443"),
    ],
)
def test_each_lack_is_named_with_its_mend(change: dict[str, object], said: str) -> None:
    found = problems(replace(GOOD, **change))  # type: ignore[arg-type]
    assert len(found) == 1
    assert said in found[0]


def test_all_problems_are_said_together() -> None:
    assert len(problems(replace(GOOD, root=False, memory=0, free_disk=0))) == 3


@pytest.mark.usefixtures("empty_caches")
def test_a_cpu_wheel_of_torch_spares_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = doctor.inspect(tmp_path / "cache").disk_needed
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").write_text("")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    assert doctor.inspect(tmp_path / "cache").disk_needed < without


@pytest.mark.parametrize("place", ["cache/oci", "UV_CACHE_DIR", "GOCACHE", "GOMODCACHE"])
def test_what_an_earlier_run_has_written_is_not_needed_again(empty_caches: Path, place: str) -> None:
    cache = empty_caches / "cache"
    fresh = doctor.inspect(cache).disk_needed
    (empty_caches / place).mkdir(parents=True)
    (empty_caches / place / "blob").write_bytes(b"x" * (8 << 20))
    assert doctor.inspect(cache).disk_needed == pytest.approx(fresh - (8 << 20), abs=1 << 20)


@pytest.mark.usefixtures("empty_caches")
def test_a_machine_needs_less_disk_once_every_image_is_exported_and_not_before(tmp_path: Path) -> None:
    fresh = pytest.approx(doctor.inspect(tmp_path).disk_needed, abs=1 << 20)
    index = tmp_path / "oci" / "index.json"
    index.parent.mkdir()
    assert doctor.inspect(tmp_path).disk_needed == fresh
    names = [f"localhost/deepcoder/{name}:1" for name in ("operator", "sandbox", "trainer")]
    entries = [{"annotations": {"org.opencontainers.image.ref.name": name}} for name in names]
    for killed in ('{"manif', json.dumps({"manifests": entries[:2]})):
        index.write_text(killed)
        assert doctor.inspect(tmp_path).disk_needed == fresh
    index.write_text(json.dumps({"manifests": entries}))
    assert doctor.inspect(tmp_path).disk_needed == 5 << 30


@pytest.mark.usefixtures("empty_caches")
def test_a_port_in_use_is_found(tmp_path: Path) -> None:
    port = free_port()  # the kernel might hand one of its own to somebody else once it is free again
    with socket.create_server(("127.0.0.1", port)):
        assert doctor.inspect(tmp_path, (port,)).taken_ports == (port,)
    assert doctor.inspect(tmp_path, (port,)).taken_ports == ()


@pytest.fixture
def read_only(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that access() says cannot be written, as on a read-only file system; root may write everywhere else."""
    folder = empty_caches / "read-only"
    folder.mkdir()
    access = os.access

    def refused(path: Path, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and Path(path).is_relative_to(folder))

    monkeypatch.setattr(os, "access", refused)
    return folder


def test_a_cache_that_cannot_be_made_is_found_with_the_variable_that_moves_it(read_only: Path) -> None:
    found = doctor.inspect(read_only / "home" / ".cache" / "deepcoder")
    assert found.read_only == (doctor.Place(found.cache, "DEEPCODER_CACHE"),)


@pytest.mark.parametrize("variable", ["UV_CACHE_DIR", "GOCACHE", "GOMODCACHE"])
def test_a_tools_cache_that_cannot_be_written_is_found_where_something_is_yet_to_be_built(
    read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(read_only / "tools"))
    assert doctor.inspect(tmp_path / "cache").read_only == (doctor.Place(read_only / "tools", variable),)
    monkeypatch.setattr(doctor.Artifacts, "missing", lambda artifacts: [])
    assert doctor.inspect(tmp_path / "cache").read_only == ()


V1 = """\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
32 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
"""


@pytest.mark.usefixtures("empty_caches")
def test_a_controller_that_the_kernel_left_out_is_found_with_both_versions_of_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu cpuset io pids\n")
    v2 = f"30 25 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    for mounts, lacks in ((V1, ("cpuset", "memory")), (v2, ("memory",)), ("", ("cpu", "cpuset", "memory", "pids"))):
        monkeypatch.setattr(cgroups, "hierarchies", lambda mounts=mounts: cgroups.parse_mounts(mounts))
        assert doctor.inspect(tmp_path).missing_controllers == lacks
