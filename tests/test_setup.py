"""A set-up that ended half-way is done again, and llama.cpp is the version that is pinned. uv is a script here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("contracts", "operator", "sandbox_image", "trainer_image", "devcluster", "client", "cli", "web", "demo")
UV = """\
#!/bin/sh
echo "$*" >> "$HOME/asked"
case "$1" in venv) mkdir -p .venv/bin && ln -sf "$HOME/python" .venv/bin/python ;; esac
case "$*" in *"$(cat "$HOME/fails" 2> /dev/null || echo nothing)"*) exit 1 ;; esac
"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with pins of its own, a Python and a cache beside it."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("setup.sh", "gguf.sh", "gguf.cmake"):
        shutil.copy(ROOT / "scripts" / name, checkout / "scripts")
    script(
        checkout / "scripts/plain-python.sh",
        '#!/bin/sh\ncase "$2" in *executable*) echo "$HOME/python" ;; esac\necho "$HOME/cache"\n',
    )
    for name in (
        *(f"constraints/{pins}.txt" for pins in ("trainer-cpu", "dev", "sbom")),
        *(f"{package}/pyproject.toml" for package in PACKAGES),
    ):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("first\n")
    (checkout / "constraints/gguf.txt").write_text("diskcache==5.6.3\nllama_cpp_python==0.3.36\n")
    script(tmp_path / "python", f'#!/bin/sh\nPYTHONPATH="$HOME/installed" exec {sys.executable} -S "$@"\n')
    script(tmp_path / "cache/uv/bin/uv", UV)
    for compiler in ("c++", "make"):
        script(tmp_path / "bin" / compiler, "#!/bin/sh\n")
    return checkout


def run(checkout: Path, name: str) -> tuple[int, list[str]]:
    """Exit code of a script, and what it asked of uv."""
    home = checkout.parent
    asked = home / "asked"
    asked.unlink(missing_ok=True)
    environment = {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([checkout / "scripts" / name], env=environment, timeout=60, check=False)
    return done.returncode, asked.read_text().splitlines() if asked.exists() else []


def test_what_is_set_up_is_left_alone_until_a_pin_changes(checkout: Path) -> None:
    assert run(checkout, "setup.sh")[0] == 0
    assert run(checkout, "setup.sh") == (0, [])
    (checkout / "constraints/dev.txt").write_text("second\n")
    assert run(checkout, "setup.sh")[1] != []


def test_a_set_up_that_ended_half_way_is_done_again_also_with_the_pins_before_it(checkout: Path) -> None:
    run(checkout, "setup.sh")
    (checkout / "constraints/dev.txt").write_text("second\n")
    (checkout.parent / "fails").write_text("dev.txt")
    assert run(checkout, "setup.sh")[0] != 0
    (checkout.parent / "fails").unlink()
    (checkout / "constraints/dev.txt").write_text("first\n")
    code, asked = run(checkout, "setup.sh")
    assert code == 0
    assert any("dev.txt" in line for line in asked)


@pytest.mark.parametrize(
    ("versions", "installs"),
    [
        ({"diskcache": "5.6.3", "llama_cpp_python": "0.3.36"}, False),
        ({"diskcache": "5.6.3", "llama_cpp_python": "0.3.35"}, True),
        ({"diskcache": "5.6.2", "llama_cpp_python": "0.3.36"}, True),
        ({"diskcache": "5.6.3"}, True),
    ],
)
def test_llama_cpp_is_installed_where_it_is_not_as_pinned(
    checkout: Path, versions: dict[str, str], installs: bool
) -> None:
    installed = checkout.parent / "installed"
    (installed / "llama_cpp").mkdir(parents=True)
    (installed / "llama_cpp/__init__.py").touch()
    for name, version in versions.items():
        folder = installed / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    run(checkout, "setup.sh")
    code, asked = run(checkout, "gguf.sh")
    assert code == 0
    assert [("gguf.txt" in line) for line in asked] == [True] * installs
