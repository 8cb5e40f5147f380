"""Makes krew's archive and manifest: `packaging/krew/build.py --uri URL --homepage URL --output DIR`.

The archive holds wheels of this repository's packages and the launcher; the manifest is the template with version, URI
and checksum filled in. `uv` builds the wheels, from what is checked out and without a network. An archive of the same
commit is the same to the byte.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PACKAGES = ("contracts", "client", "cli")
BUILD_SECONDS = 300
LAUNCHER = "kubectl-deepcoder"


def version() -> str:
    """Of the command line."""
    found: str = tomllib.loads((REPOSITORY / "cli/pyproject.toml").read_text())["project"]["version"]
    return found


def build_wheels(folder: Path) -> list[Path]:
    """A wheel of each package, from a copy of its source: what earlier builds have left there is in none of them."""
    for package in PACKAGES:
        source = folder / "source" / package
        left = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests")
        shutil.copytree(REPOSITORY / package, source, ignore=left)
        subprocess.run(
            [
                "uv", "build", "--quiet", "--wheel", "--no-build-isolation", "--offline", "--python", sys.executable,
                "--out-dir", str(folder), str(source),
            ],
            check=True, timeout=BUILD_SECONDS,
        )  # fmt: skip
    return sorted(folder.glob("*.whl"))


def archive(wheels: list[Path]) -> bytes:
    """The archive; times and owners are left out, so that it depends on its content alone."""
    files = {wheel.name: (f"wheels/{wheel.name}", wheel.read_bytes(), 0o644) for wheel in wheels}
    launcher = (HERE / LAUNCHER).read_bytes()
    members = [
        (LAUNCHER, launcher, 0o755),
        (LAUNCHER.replace("kubectl-", "kubectl_complete-"), launcher, 0o755),
        ("LICENSE", (REPOSITORY / "LICENSE").read_bytes(), 0o644),
        ("VERSION", f"{version()}\n".encode(), 0o644),
        *(files[name] for name in sorted(files)),
    ]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data, mode in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), mtime=0)


def manifest(uri: str, homepage: str, data: bytes) -> str:
    """The template, filled."""
    text = (HERE / "deepcoder.template.yaml").read_text()
    filled = {
        "{version}": version(),
        "{homepage}": homepage,
        "{uri}": uri,
        "{sha256}": hashlib.sha256(data).hexdigest(),
    }
    for name, value in filled.items():
        text = text.replace(name, value)
    return text.partition("\n")[2]


def main() -> int:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uri", required=True, help="where the archive will be fetched from")
    parser.add_argument("--homepage", required=True, help="where people read about it: your copy of the repository")
    parser.add_argument("--output", type=Path, required=True, help="folder for both files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = archive(build_wheels(Path(folder)))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"kubectl-deepcoder-{version()}.tar.gz").write_bytes(data)
    (options.output / "deepcoder.yaml").write_text(manifest(options.uri, options.homepage, data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
