"""The demo as a whole: two at once, Ctrl-C, and what is said then."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcoder_demo import __main__ as demo
from deepcoder_demo import devcluster, preflight
from deepcoder_demo.demo_lock import AlreadyRunning, lock_file, only_one


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
