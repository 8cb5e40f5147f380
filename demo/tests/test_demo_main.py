"""The demo as a whole: two at once, Ctrl-C, and what is said then."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from deepcoder_demo import __main__ as demo
from deepcoder_demo import devcluster, manifest, platform, preflight, summary
from deepcoder_demo.demo_lock import AlreadyRunning, lock_file, only_one
from deepcoder_demo.settings import OUTPUT, Cluster, Images, S3Access


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, no KUBECONFIG, and the signal handling as it was."""
    names = devcluster.Places.__dataclass_fields__
    monkeypatch.setattr(devcluster, "places", lambda: devcluster.Places(*(tmp_path / name for name in names)))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_second_demo_leaves_the_run_of_the_first_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    def make_ready(stopwatch: object) -> None:
        begun.append(1)
        assert demo.main([]) == 1, "the second"
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "make_ready", make_ready)
    for _ in range(2):  # the lock of the first is free again
        assert demo.main([]) == 130
    assert len(begun) == 2
    assert f"process {os.getpid()} already runs the demo on this cluster" in said(capsys)


def test_demos_on_two_clusters_run_side_by_side(tmp_path: Path) -> None:
    one, two = lock_file(tmp_path, "/home/me/config"), lock_file(tmp_path, tmp_path / "kubeconfig")
    with only_one(one), only_one(two), pytest.raises(AlreadyRunning), only_one(one):
        pass


def test_a_demo_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "demo"
    code = (
        "import sys, time; from pathlib import Path; from deepcoder_demo.demo_lock import only_one\n"
        "with only_one(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match=f"process {holder.pid} "), only_one(path):
            pass
        holder.kill()
    with only_one(path):
        assert path.read_text() == str(os.getpid())


def test_an_interrupted_demo_says_what_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(stopwatch: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "make_ready", interrupted)
    assert demo.main([]) == 130
    told = said(capsys)
    assert "What is built is kept" in told
    assert "A run that has started continues in the cluster" in told


def test_checks_that_are_interrupted_end_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(environment: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preflight, "check", interrupted)
    assert preflight.main() == 130
    assert capsys.readouterr().err == "demo: interrupted; nothing was changed\n"


@pytest.mark.parametrize("ours", [True, False])
def test_the_last_words_say_how_to_remove_what_was_made(ours: bool) -> None:
    cluster = Cluster("/a", ours, Images("o", "t", "s"), S3Access("http://s3", "http://s3", "b", "r", "k", "s"))
    console = Console(file=io.StringIO(), width=200)
    summary.farewell(cluster, "demo", "demo", console)
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert ("make down" in told) is ours
    for command in ("helm uninstall deepcoder -n deepcoder", "kubectl delete namespace demo deepcoder"):
        assert (command in told) is not ours


@pytest.mark.parametrize(("phase", "code"), [("Complete", 0), ("Failed", 1)])
def test_the_run_before_goes_first_and_a_run_that_does_not_complete_is_a_failure_with_its_reasons(
    phase: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = S3Access("http://s3", "http://s3", "b", "r", "k", "s")
    cluster, done = Cluster("/a", False, Images("o", "t", "s"), s3), list[str]()
    conditions = [
        {"type": "Failed", "status": "True", "message": "stage short failed"},
        {"type": "Progressing", "status": "False", "message": "of another matter"},
    ]
    run = {"status": {"phase": phase, "conditions": conditions}}

    def show(*_: object) -> Path:
        done.append("summary")
        return OUTPUT

    monkeypatch.setattr(demo, "make_ready", lambda stopwatch: cluster)
    monkeypatch.setattr(manifest, "written", lambda s3: manifest.EXAMPLE)
    monkeypatch.setattr(platform, "delete_and_wait", lambda *_, **__: done.append("delete"))
    monkeypatch.setattr(platform, "kubectl", lambda cluster, verb, *_: done.append(verb))
    monkeypatch.setattr(platform, "follow", lambda *_, **__: done.append("follow") or run)
    monkeypatch.setattr(summary, "show", show)
    assert demo.main([]) == code
    assert done == ["delete", "apply", "follow", *(["summary"] if code == 0 else [])]
    told = said(capsys)
    assert ("the run ended as Failed: stage short failed" in told) is (code == 1)
    assert "of another matter" not in told
