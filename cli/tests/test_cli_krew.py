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
    checkout = hostile(tmp_path / "checkout")
    own = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DEEPCODER_PLUGIN_PYTHON": sys.executable}

    def started(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "bin" / name), *words]
        return subprocess.run(command, env=own, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)

    assert "Exit codes" in started("kubectl-deepcoder", "--help").stdout
    assert started("kubectl_complete-deepcoder", "stag").stdout.startswith("stages\t")
    assert not (checkout / "run").exists(), "code of the folder that the user is in"


def hostile(folder: Path) -> Path:
    """An untrusted checkout, with modules named as those that the command line imports: each says that it was run."""
    folder.mkdir()
    for module in ("yaml", "click", "venv", "ensurepip", "pip"):
        (folder / f"{module}.py").write_text("import pathlib; pathlib.Path(__file__).with_name('run').touch()\n")
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def unpacked(tmp_path: Path) -> Path:
    """The launcher in a folder, and the folder of all tools that it finds."""
    tools, store = tmp_path / "tools", tmp_path / "store"
    tools.mkdir()
    store.mkdir()
    shutil.copy(ROOT / "packaging/krew/kubectl-deepcoder", store)
    (store / "VERSION").write_text("0.1.0\n")
    for tool in ("sh", "dirname", "basename", "cat", "readlink", "ls", "mkdir", "ln", "rm"):
        (tools / tool).symlink_to(Path("/bin") / tool if (Path("/bin") / tool).exists() else Path("/usr/bin") / tool)
    return tools


def status(
    tmp_path: Path, environment: dict[str, str], name: str = "kubectl-deepcoder"
) -> subprocess.CompletedProcess[str]:
    """Start the launcher."""
    return subprocess.run(
        [str(tmp_path / "store" / name), "status"],
        env={"PATH": str(tmp_path / "tools")} | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


PYTHONS = {
    "none": None,
    "without pip": 'case "$*" in *ensurepip*) exit 1 ;; esac',
    "without room": 'case "$2" in -c) exit 0 ;; *) echo "No space left on device" >&2; exit 1 ;; esac',
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
    tools = unpacked(tmp_path)
    if (script := PYTHONS[python]) is not None:
        program(tools / "python3.11", script)
    answer = status(tmp_path, {"HOME": str(tmp_path)} if home else {})
    assert answer.returncode == 6, answer.stderr
    assert told in answer.stderr


# What a virtual environment's Python has is kept by its minor version, and is told here to whoever starts it.
PYTHON = """\
echo "$*" >> "$HOME/started"
packages=$(dirname "$0")/../lib/python$VERSION
case "$*" in
  "-P -m venv"*) for home in "$@"; do :; done
    case "$*" in *--clear*) rm -rf "$home" ;; esac
    mkdir -p "$home/bin"
    if [ ! -h "$home/bin/python" ]; then ln -s "$0" "$home/bin/python"; fi ;;
  "-P -m pip"*) mkdir -p "$packages" ;;
  *"import deepcoder_cli") test -d "$packages" ;;
  "-P -m deepcoder_cli status") test -d "$packages" || { echo "No module named deepcoder_cli" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of tools after the launcher's first start, with a Python 3.12 that is called python3."""
    tools = unpacked(tmp_path)
    replaced(tools / "python3", "3.12")
    assert starts(tmp_path)[1:] == ["-m venv", "-m pip", "-m deepcoder_cli"]
    return tools


@pytest.mark.parametrize("home", [True, False])
def test_a_tab_before_the_first_start_installs_nothing(home: bool, tmp_path: Path) -> None:
    """The shell would stand for as long as pip needs, for a plugin that is perhaps never started."""
    replaced(unpacked(tmp_path) / "python3", "3.12")
    (tmp_path / "store/kubectl_complete-deepcoder").symlink_to("kubectl-deepcoder")
    answer = status(tmp_path, {"HOME": str(tmp_path)} if home else {}, "kubectl_complete-deepcoder")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, ":4\n", "")
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / ".local").exists()


def replaced(python: Path, version: str) -> None:
    """As an upgrade does it: another file, and nothing else."""
    making = python.with_name("making")
    program(making, f"VERSION={version}\n{PYTHON}")
    making.rename(python)


def starts(tmp_path: Path) -> list[str]:
    """What the launcher starts Python for, when it starts the command line in the end."""
    (tmp_path / "started").unlink(missing_ok=True)
    answer = status(tmp_path, {"HOME": str(tmp_path)})
    assert answer.returncode == 0, answer.stderr
    lines = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    assert {line[0] for line in lines} <= {"-P", "-I"}, "else modules of the working directory are imported"
    return [" ".join(line[1:3]) for line in lines]


def test_a_second_start_starts_python_once(installed: Path, tmp_path: Path) -> None:
    assert starts(tmp_path) == ["-m deepcoder_cli"]


def test_a_python_that_is_gone_is_replaced_by_another(installed: Path, tmp_path: Path) -> None:
    (installed / "python3").unlink()
    replaced(installed / "python3.13", "3.13")
    assert starts(tmp_path)[1:] == ["-m venv", "-m pip", "-m deepcoder_cli"]
    assert starts(tmp_path) == ["-m deepcoder_cli"]


def test_a_python_that_is_gone_without_another_is_missed(installed: Path, tmp_path: Path) -> None:
    (installed / "python3").unlink()
    answer = status(tmp_path, {"HOME": str(tmp_path)})
    assert answer.returncode == 6
    assert "install one, or name it in DEEPCODER_PLUGIN_PYTHON" in answer.stderr


def test_another_minor_version_gets_the_packages_too(installed: Path, tmp_path: Path) -> None:
    replaced(installed / "python3", "3.13")
    assert starts(tmp_path)[-2:] == ["-m pip", "-m deepcoder_cli"]
    assert starts(tmp_path) == ["-m deepcoder_cli"]


def test_another_build_of_the_same_version_needs_no_package_index(installed: Path, tmp_path: Path) -> None:
    replaced(installed / "python3", "3.12")
    assert len(starts(tmp_path)) == 2
    assert starts(tmp_path) == ["-m deepcoder_cli"]


def test_a_set_up_that_ended_before_its_python_went_is_made_anew(installed: Path, tmp_path: Path) -> None:
    (tmp_path / ".local/share/kubectl-deepcoder/0.1.0/ready").unlink()
    (installed / "python3").unlink()
    replaced(installed / "python3.13", "3.13")
    assert starts(tmp_path)[1:] == ["-m venv", "-m pip", "-m deepcoder_cli"]
