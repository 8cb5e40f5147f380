"""krew's archive and manifest, made from what is checked out, and the launcher within."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
URI = "https://example.org/releases/kubectl-deepcoder.tar.gz"
HOMEPAGE = "https://example.org/deepcoder"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("krew")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    build = [sys.executable, str(ROOT / "packaging/krew/build.py"), "--uri", URI, "--homepage", HOMEPAGE]
    subprocess.run([*build, "--output", str(output)], check=True, timeout=300, env=environment)
    return output


def manifest(made: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((made / "deepcoder.yaml").read_text())
    return read


def archive(made: Path) -> Path:
    (found,) = made.glob("*.tar.gz")
    return found


def test_the_manifest_is_as_krew_wants_it(made: Path) -> None:
    plugin = manifest(made)
    assert plugin["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert plugin["kind"] == "Plugin"
    assert plugin["metadata"]["name"] == "deepcoder"
    assert re.fullmatch(r"v\d+\.\d+\.\d+", plugin["spec"]["version"])
    assert len(plugin["spec"]["shortDescription"]) <= 50
    assert not plugin["spec"]["shortDescription"].endswith(".")
    (platform,) = plugin["spec"]["platforms"]
    assert platform["uri"] == URI
    assert plugin["spec"]["homepage"] == HOMEPAGE
    assert platform["sha256"] == hashlib.sha256(archive(made).read_bytes()).hexdigest()
    assert not re.search(r"\{\w+\}", (made / "deepcoder.yaml").read_text()), "something is not filled in"


def test_the_archive_holds_what_the_manifest_starts_and_all_our_packages(made: Path) -> None:
    (platform,) = manifest(made)["spec"]["platforms"]
    with tarfile.open(archive(made)) as tar:
        members = {m.name: m for m in tar}
    assert members[platform["bin"]].mode & 0o111
    assert {"LICENSE", "VERSION", "kubectl_complete-deepcoder"} <= set(members)
    wheels = {name.split("/")[1].split("-")[0] for name in members if name.endswith(".whl")}
    assert wheels == {"deepcoder_cli", "deepcoder_client", "deepcoder_contracts"}


def test_the_wheels_hold_every_module_and_none_that_is_gone(made: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(archive(made), tmp_path)
    for wheel in (tmp_path / "wheels").glob("*.whl"):
        package = wheel.name.split("-")[0]
        source = ROOT / package.removeprefix("deepcoder_") / "src"
        with zipfile.ZipFile(wheel) as opened:
            packed = {name for name in opened.namelist() if name.endswith(".py")}
        assert packed == {str(path.relative_to(source)) for path in (source / package).rglob("*.py")}


def test_the_launcher_starts_through_a_link_with_an_interpreter_that_has_the_packages(
    made: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(archive(made), tmp_path / "store")
    (tmp_path / "bin").mkdir()
    for name in ("kubectl-deepcoder", "kubectl_complete-deepcoder"):
        (tmp_path / "bin" / name).symlink_to(Path("../store") / name)
    own = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DEEPCODER_PLUGIN_PYTHON": sys.executable}

    def started(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "bin" / name), *words]
        return subprocess.run(command, env=own, capture_output=True, text=True, timeout=60, check=False)

    assert "Exit codes" in started("kubectl-deepcoder", "--help").stdout
    assert started("kubectl_complete-deepcoder", "stag").stdout.startswith("stages\t")


PYTHONS = {
    "none": None,
    "without pip": 'case "$*" in *ensurepip*) exit 1 ;; esac',
    "without room": 'case "$1" in -c) exit 0 ;; *) echo "No space left on device" >&2; exit 1 ;; esac',
}


@pytest.mark.parametrize(
    ("python", "home", "told"),
    [
        ("none", True, "install one, or name it in DEEPCODER_PLUGIN_PYTHON"),
        ("without pip", True, "install one, or name it in DEEPCODER_PLUGIN_PYTHON"),
        ("without room", True, "No space left on device\nerror: no virtual environment could be made in"),
        ("without room", False, "HOME or XDG_DATA_HOME"),
    ],
)
def test_where_it_cannot_start_the_launcher_says_what_is_missing(
    python: str, home: bool, told: str, tmp_path: Path
) -> None:
    """Debian's Python has venv, and what venv needs in a package of its own."""
    tools, store = tmp_path / "tools", tmp_path / "store"
    tools.mkdir()
    store.mkdir()
    shutil.copy(ROOT / "packaging/krew/kubectl-deepcoder", store)
    (store / "VERSION").write_text("0.1.0\n")
    for tool in ("sh", "dirname", "basename", "cat", "readlink"):
        (tools / tool).symlink_to(Path("/bin") / tool if (Path("/bin") / tool).exists() else Path("/usr/bin") / tool)
    if (script := PYTHONS[python]) is not None:
        (tools / "python3.11").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "python3.11").chmod(0o755)
    answer = subprocess.run(
        [str(store / "kubectl-deepcoder"), "status"],
        env={"PATH": str(tools)} | ({"HOME": str(tmp_path)} if home else {}),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 6, answer.stderr
    assert told in answer.stderr
