"""A build that fails or is killed leaves nothing that the next takes for whole."""

import threading
from pathlib import Path

import pytest

from devcluster import artifacts, debian, gobuild, staging, tools
from devcluster.artifacts import Artifacts, NotBuilt
from devcluster.command import CommandFailed, run
from devcluster.gobuild import GoProgram


def test_what_is_missing_is_named_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(NotBuilt, match=r"kubernetes.*Run: devcluster build"):
        Artifacts(tmp_path, "go1.26.8").require()


def test_another_version_of_go_builds_into_other_directories(tmp_path: Path) -> None:
    one, two = Artifacts(tmp_path, "go1.26.8"), Artifacts(tmp_path, "go1.26.9")
    assert one.directory("etcd") != two.directory("etcd")
    assert one.sysroot == two.sysroot


def test_every_name_of_a_program_lies_in_the_directory_of_its_module(tmp_path: Path) -> None:
    found = Artifacts(tmp_path, "go1.26.8")
    programs = found.programs()
    assert programs["kubelet"].parent == found.directory("kubernetes")
    assert {"containerd", "containerd-shim-runc-v2", "ctr"} <= set(programs)


def test_an_optional_program_is_built_when_it_is_named_and_missed_by_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr(gobuild, "build", lambda program, cache, version: built.append(program.module))
    found = Artifacts(tmp_path, "go1.26.8")
    assert "kueue" not in found.missing()
    found.build_optional([])
    assert built == []
    found.build_optional(["kueue"])
    assert built == ["kueue"]


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the Go lane does something."""
    monkeypatch.setattr(tools, "fetch", lambda cache: cache)
    monkeypatch.setattr(debian, "make_sysroot", lambda cache: cache)
    monkeypatch.setattr(debian, "make_base", lambda cache, sysroot: cache)


@pytest.mark.usefixtures("lanes")
def test_the_remains_of_a_killed_build_are_swept_away_and_nothing_else_of_a_shared_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gobuild, "build", lambda program, cache, version: cache)
    with staging.making(tmp_path, "etcd-whole") as making:
        making.mkdir()
        remains, file_remains = making.with_name(f"{making.name}1"), making.with_name(f"{making.name}2")
        remains.mkdir()
        (remains / "etcd").write_text("half")
        file_remains.write_text("half")
    others = [tmp_path / place for place in (".ssh/id", ".profile", "bin/.theirs", "tmp/theirs")]
    others.append(remains.with_name("theirs"))
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("of somebody who keeps files here too")
    Artifacts(tmp_path, "go1.26.8").build()
    assert not remains.exists()
    assert not file_remains.exists()
    assert [other for other in others if not other.exists()] == []


def test_images_are_made_while_go_still_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    images_made = threading.Event()

    def go(program: GoProgram, cache: Path, version: str) -> Path:
        assert images_made.wait(30)
        return cache

    def images() -> None:
        made.append("images")
        images_made.set()

    monkeypatch.setattr(gobuild, "build", go)
    monkeypatch.setattr(tools, "fetch", lambda cache: made.append("tools"))
    monkeypatch.setattr(debian, "make_sysroot", lambda cache: cache)
    monkeypatch.setattr(debian, "make_base", lambda cache, sysroot: made.append("base"))
    Artifacts(tmp_path, "go1.26.8").build(images)
    assert made == ["tools", "base", "images"]


def test_who_has_made_the_images_helps_with_the_programs_that_are_left(
    tmp_path: Path, lanes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, others = gobuild.PROGRAMS[0].module, {program.module for program in gobuild.PROGRAMS[1:]}
    begun: list[str] = []
    all_begun = threading.Event()

    def go(program: GoProgram, cache: Path, version: str) -> Path:
        begun.append(program.module)
        if set(begun) >= others:
            all_begun.set()
        if program.module == first:
            assert all_begun.wait(30)
        return cache

    monkeypatch.setattr(gobuild, "build", go)
    Artifacts(tmp_path, "go1.26.8").build()
    assert sorted(begun) == sorted({first, *others})


def test_what_is_not_whole_when_its_making_ends_is_gone_and_what_was_renamed_stays(tmp_path: Path) -> None:
    with staging.making(tmp_path, "thing") as making:
        making.mkdir()
        (making / "part").write_text("half")
    assert not making.exists()
    with staging.making(tmp_path, "thing") as making:
        making.write_text("whole")
        making.rename(tmp_path / "thing")
    assert (tmp_path / "thing").read_text() == "whole"


def test_a_failure_in_one_lane_ends_what_runs_in_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()

    def endless(program: object, cache: Path, version: str) -> None:
        started.set()
        run(["sleep", "600"], deadline=600)

    def fails(cache: Path) -> Path:
        started.wait(60)
        while not artifacts.command._running:
            pass
        raise CommandFailed("the mirror is down")

    monkeypatch.setattr(gobuild, "build", endless)
    monkeypatch.setattr(tools, "fetch", fails)
    with pytest.raises(CommandFailed, match="the mirror is down"):
        Artifacts(tmp_path, "go1.26.8").build()
