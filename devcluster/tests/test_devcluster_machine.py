"""What clusters share of a machine: the last puts its settings back, down ends its own alone, and ports are apart."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cgroups, forwards, host_settings, install, lifecycle, node, procfs, sysctls
from devcluster.cgroups import Hierarchy
from devcluster.config import Cluster

SETTING = "vm/overcommit_memory"


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A machine of files: one setting, a cgroup v2 hierarchy, and the controllers switched, in order."""
    settings, root = tmp_path / "sys", tmp_path / "cgroup"
    (settings / SETTING).parent.mkdir(parents=True)
    (settings / SETTING).write_text("0\n")
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma")
    (root / "cgroup.subtree_control").write_text("memory")
    switched: list[str] = []

    def switch(place: Path, word: str) -> None:
        if place != root:
            return
        switched.append(word)
        file = place / "cgroup.subtree_control"
        enabled = set(file.read_text().split())
        file.write_text(" ".join(enabled | {word[1:]} if word[0] == "+" else enabled - {word[1:]}))

    monkeypatch.setattr(sysctls, "ROOT", settings)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(root, 2)])
    monkeypatch.setattr(cgroups, "_switch", switch)
    monkeypatch.setattr(host_settings, "NOTE", tmp_path / "note.json")
    monkeypatch.setattr(host_settings, "LOCK", tmp_path / "note.lock")
    return switched


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    return tmp_path / "sys" / SETTING


def enabled(tmp_path: Path) -> set[str]:
    return set((tmp_path / "cgroup" / "cgroup.subtree_control").read_text().split())


def test_the_last_cluster_and_no_other_puts_the_settings_back(
    changed: list[str], setting: Path, tmp_path: Path
) -> None:
    host_settings.enter("devcluster-main")
    setting.write_text("1\n")
    host_settings.enter("devcluster-trial")
    host_settings.leave("devcluster-main")
    assert setting.read_text() == "1\n"
    host_settings.leave("devcluster-trial")
    assert setting.read_text() == "0"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("note")] == []


def test_an_up_after_a_crash_does_not_take_the_changed_settings_for_the_machines_own(
    changed: list[str], setting: Path
) -> None:
    host_settings.enter("devcluster-main")
    setting.write_text("1\n")
    host_settings.enter("devcluster-main")
    host_settings.leave("devcluster-main")
    assert setting.read_text() == "0"


def test_controllers_that_were_handed_down_for_clusters_are_taken_back_and_only_they(
    changed: list[str], tmp_path: Path
) -> None:
    host_settings.enter("devcluster-main")
    assert enabled(tmp_path) >= {"cpu", "cpuset", "memory", "pids"}
    host_settings.enter("devcluster-trial")
    host_settings.leave("devcluster-main")
    assert enabled(tmp_path) >= {"cpu", "cpuset", "memory", "pids"}
    changed.clear()
    host_settings.leave("devcluster-trial")
    assert changed == ["-cpu", "-cpuset", "-pids"]
    assert "memory" in enabled(tmp_path)


def test_a_note_of_an_earlier_boot_counts_for_nothing(changed: list[str], setting: Path) -> None:
    host_settings.NOTE.write_text(json.dumps({"boot_id": "earlier", "settings": {SETTING: "2"}, "controllers": ["io"]}))
    host_settings.enter("devcluster-main")
    note = json.loads(host_settings.NOTE.read_text())
    assert note["boot_id"] == procfs.boot_id()
    assert note["settings"] == {SETTING: "0"}
    assert "io" not in note["controllers"]


def test_what_will_be_changed_is_noted_before(changed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cgroups, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        host_settings.enter("devcluster-main")
    assert json.loads(host_settings.NOTE.read_text())["controllers"] == ["cpu", "cpuset", "pids"]


def test_leaving_where_nothing_is_needs_no_rights_and_leaves_nothing(changed: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    host_settings.leave("devcluster-main")
    assert sorted(tmp_path.iterdir()) == before
    assert changed == []


def test_a_setting_that_the_kernel_lacks_is_left_out(tmp_path: Path) -> None:
    assert sysctls.present(tmp_path) == {}


def test_a_process_that_cannot_be_seen_from_here_is_not_killed_in_our_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows a process of another namespace as 0, and a signal to 0 ends the sender and its whole group."""
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(tmp_path, 2)])
    (tmp_path / "devcluster-main" / "node").mkdir(parents=True)
    (tmp_path / "devcluster-main" / "cgroup.procs").write_text("")
    (tmp_path / "devcluster-main" / "node" / "cgroup.procs").write_text("0\n")
    assert cgroups.processes("devcluster-main") == set()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `down` ends, in order, of a cluster whose first process runs."""
    done: list[str] = []

    class Process:
        def kill(self) -> None:
            done.append("the node")

    monkeypatch.setattr(node, "running", lambda cluster: Process())
    monkeypatch.setattr(cgroups, "kill", lambda name: done.append(f"all in {name}"))
    monkeypatch.setattr(host_settings, "leave", lambda name: done.append(f"settings of {name}"))
    return done


def made(cluster: Cluster) -> Cluster:
    for place in (cluster.state, cluster.image_store):
        place.mkdir(parents=True)
        (place / "file").write_text("")
    return cluster


def test_down_ends_the_node_and_what_left_it_and_removes_the_state_of_this_cluster_alone(
    ended: list[str], tmp_path: Path
) -> None:
    cluster, other = made(Cluster("main", tmp_path)), made(Cluster("trial", tmp_path))
    lifecycle.down(cluster)
    assert ended == ["the node", f"all in {cluster.cgroup}", f"settings of {cluster.cgroup}"]
    assert not cluster.state.exists()
    assert all((place / "file").exists() for place in (cluster.image_store, other.state, other.image_store))


def test_down_keeps_the_record_of_a_cluster_that_does_not_end(
    ended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next `down` needs it."""

    def stays(name: str) -> None:
        raise TimeoutError("processes [7] are still there")

    monkeypatch.setattr(cgroups, "kill", stays)
    cluster = made(Cluster("main", tmp_path))
    with pytest.raises(TimeoutError):
        lifecycle.down(cluster)
    assert (cluster.state / "file").exists()
    assert ended == ["the node"], "the settings of a machine on which it still runs stay as they are"


def test_only_the_main_cluster_has_fixed_ports(tmp_path: Path) -> None:
    """A second one would take them from it."""
    main, trial = Cluster("main", tmp_path), Cluster("trial", tmp_path)
    assert (lifecycle.default_api_port(main), lifecycle.default_api_port(trial)) == (16443, 0)
    assert (install.default_s3_port(main), install.default_s3_port(trial)) == (17070, 0)


@pytest.mark.parametrize(
    ("host", "port", "kept"),
    [("10.0.0.1", 0, True), ("10.0.0.1", 5000, True), ("10.0.0.1", 5001, False), ("10.0.0.2", 0, False)],
)
def test_a_forward_is_kept_only_if_it_leads_to_the_same_place_from_the_port_asked_for(
    host: str, port: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Process:
        def kill(self) -> None:
            done.append("killed")

    class Started(Exception):
        """Another one would be started."""

    def start(*_: object, **__: object) -> None:
        raise Started

    running = forwards.Forward("s3", 5000, "10.0.0.1", 7070, Process())  # type: ignore[arg-type]
    monkeypatch.setattr(forwards, "find", lambda cluster, name: running)
    monkeypatch.setattr(subprocess, "Popen", start)
    cluster = Cluster("trial", tmp_path)
    if kept:
        assert forwards.start(cluster, 1, "s3", host, 7070, port) is running
    else:
        with pytest.raises(Started):
            forwards.start(cluster, 1, "s3", host, 7070, port)
    assert done == ([] if kept else ["killed"])
