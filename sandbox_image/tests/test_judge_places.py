"""Where a judge may stand and what it may be without: its attack on itself comes to the same everywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepcoder_contracts.judge import Tier
from deepcoder_sandbox.api import Judge
from deepcoder_sandbox.worker import readable_files

INHERITED = """
import signal
for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])
"""
ATTACK = """
import sys
from pathlib import Path
from deepcoder_contracts.judge import Tier
from deepcoder_sandbox.attack import attack
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteProcess
zygote = ZygoteProcess(ZygoteConfig(tier=Tier(sys.argv[1]), packages=tuple(sys.argv[2:])))
print(attack(zygote).broken)
zygote.kill()
"""
SHOW_INHERITED = """
from deepcoder_contracts.judge import JudgeRequest, TestCase
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
slot = Slot(zygote.config, "test")
code = '''
import os, signal
print(format(os.umask(0), "03o"), signal.pthread_sigmask(signal.SIG_BLOCK, ()) or "none blocked")
print(*[n.name for n in signal.Signals if signal.getsignal(n) is signal.SIG_IGN])
'''
tests = (TestCase(input="", output="022 none blocked SIGPIPE"),)
request = JudgeRequest(id="inherited", code=code, tests=list(tests))
print(slot.judge(Submission(request, tests), float("inf")).verdicts)
slot.close()
"""
REQUEST = b'{"id": "a", "code": "import mine; print(mine.ONE)", "tests": [{"input": "", "output": "1"}]}\n'

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare, to have a place of its own"
)


def run(*command, given=b"", **where):
    return subprocess.run(command, input=given, capture_output=True, timeout=50, check=False, **where)


@pytest.fixture
def packages(tmp_path):
    directory = tmp_path / "packages"
    directory.mkdir()
    (directory / "mine.py").write_text("ONE = 1")
    return directory


def test_a_judge_may_be_started_where_its_programs_packages_lie(packages):
    found = run(sys.executable, "-c", ATTACK, Tier.LANDLOCK, str(packages), cwd=packages)
    assert (found.returncode, found.stdout) == (0, b"[]\n"), found


READ_ONLY = """
mount --make-rprivate / && for at in /tmp /var/tmp; do mount --bind $at $at || exit; done
# With `bind` a mount of this namespace alone becomes read-only; without, the file system would for everybody.
for at in $READ_ONLY; do mount -o remount,ro,bind $at && ! touch $at/x 2>&- || exit; done
cd / && exec "$@"
"""


@needs_namespaces
@pytest.mark.root
@pytest.mark.parametrize("tier", [Tier.NAMESPACES, Tier.LANDLOCK])
@pytest.mark.parametrize("places", ["/", "/ /tmp /var/tmp"], ids=["its root, as in a pod", "all places"])
def test_a_judge_starts_where_it_cannot_write(places, tier):
    environment = {**os.environ, "READ_ONLY": places}
    environment.pop("TMPDIR", None)
    script = ["sh", "-c", READ_ONLY, "sh", sys.executable, "-c", ATTACK, tier]
    found = run("unshare", "--mount", *script, env=environment)
    assert (found.returncode, found.stdout) == (0, b"[]\n"), found


@needs_namespaces
@pytest.mark.root
def test_a_judge_starts_in_a_directory_that_is_gone_as_a_user_whom_the_machine_does_not_know(tmp_path):
    gone = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
    nobody = ["unshare", "--user", "--map-user=54321", "env", "-u", "HOME", "-u", "PYTHONPATH"]
    found = run(*gone, *nobody, sys.executable, "-c", ATTACK, Tier.LANDLOCK, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, b"[]\n"), found


@needs_namespaces
@pytest.mark.root
@pytest.mark.parametrize("tier", [Tier.NAMESPACES, Tier.LANDLOCK])
def test_umask_and_signals_of_whoever_starts_a_judge_reach_neither_its_tiers_nor_its_programs(tier):
    found = run(
        "sh", "-c", 'umask 077 && exec "$@"', "sh", sys.executable, "-c", INHERITED + ATTACK + SHOW_INHERITED, tier
    )
    assert found.returncode == 0, found
    attacked, verdicts = found.stdout.decode().splitlines()
    assert attacked == "[]"
    assert "PASSED" in verdicts


HIDE_PROCESSES = 'mount --make-rprivate / && mount -t proc -o hidepid=2,gid=54321 proc /proc && exec "$@"'


@needs_namespaces
@pytest.mark.root
def test_a_judge_that_proc_does_not_show_its_programs_to_does_not_start():
    """It could count no program's threads, and would refuse each one."""
    hidden = ["unshare", "--mount", "sh", "-c", HIDE_PROCESSES, "sh"]
    found = run(*hidden, sys.executable, "-c", ATTACK, Tier.LANDLOCK)
    assert found.returncode != 0, found
    assert b"hidepid" in found.stderr, found
    found = run(*hidden, sys.executable, "-c", ATTACK, Tier.NAMESPACES)
    assert (found.returncode, found.stdout) == (0, b"[]\n"), found


def test_packages_may_be_named_from_where_one_stands(packages):
    judge = [sys.executable, "-m", "deepcoder_sandbox", "judge", "--workers", "1", "--packages", "packages"]
    found = run(*judge, given=REQUEST, cwd=packages.parent)
    assert found.returncode == 0, found
    assert b'"passed":true' in found.stdout


def test_packages_that_are_not_there_are_refused_before_programs_fail_for_want_of_them(tmp_path):
    with pytest.raises(ValueError, match="missing is not a directory"):
        Judge(packages=[str(tmp_path / "missing")])
    found = run(sys.executable, "-m", "deepcoder_sandbox", "judge", "--packages", "missing", cwd=tmp_path)
    assert found.returncode == 64
    assert found.stderr.startswith(b"deepcoder-sandbox: --packages: "), found


def test_what_is_no_library_beside_this_python_is_not_shown_to_programs(tmp_path, monkeypatch):
    """Beside a distribution's Python lies all of /usr/lib: a link to nowhere would stop every zygote's start."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libpython3.11.so.1.0").touch()
    (tmp_path / "lib" / "libpython3.11.so").symlink_to("libpython3.11.so.1.0")
    (tmp_path / "lib" / "libgone.so").symlink_to("/nonexistent/libgone.so.1")
    (tmp_path / "lib" / "ld.so.conf.d").mkdir()
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    shown = [Path(path).name for path in readable_files.library_files()]
    assert shown == ["libpython3.11.so", "libpython3.11.so.1.0"]


@needs_namespaces
@pytest.mark.root
def test_packages_that_the_scratch_directory_hides_are_named_with_the_mend():
    given = ["--minimum-tier", Tier.NAMESPACES, "--packages", "/tmp"]
    found = run(sys.executable, "-m", "deepcoder_sandbox", "capacity", *given)
    assert found.returncode == 64
    assert b"packages: /tmp lies in /tmp, where programs have one of their own: move it" in found.stderr, found
