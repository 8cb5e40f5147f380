"""An image's bill of materials: every distribution and package is in it, and the standard's own schema takes it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[2]
STATUS = """\
Package: libmagic
Status: install ok installed
Architecture: amd64
Version: 1:5.44-3

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: prose
Status: install ok installed
Architecture: all
Version: 2.0-1

Package: silent
Status: install ok installed
Architecture: all
Version: 3
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: libmagic

Files: *
Copyright: 1999 Somebody
License: BSD-2-Clause

Files: odd/*
Copyright: 1999 Somebody
License: MIT or something-else

License: BSD-2-Clause
 Words.
"""
PROSE = "On Debian systems the licence is in `/usr/share/common-licenses/GPL-3'.\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with four packages in its records, of which one has been removed."""
    made = tmp_path_factory.mktemp("root")
    for name, text in {
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
        "var/lib/dpkg/status": STATUS,
        "usr/share/doc/libmagic/copyright": COPYRIGHT,
        "usr/share/doc/prose/copyright": PROSE,
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    return made


def written(root: Path, name: str, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts/sbom.py", "--name", name, "--python", sys.executable]
    return subprocess.run(
        [*command, "--root", root, "--output", output], capture_output=True, text=True, timeout=200
    )  # fmt: skip


@pytest.fixture(scope="module")
def document(root: Path) -> str:
    """Of this environment."""
    output = root / "new" / "sbom.cdx.json"
    done = written(root, "deepcoder-operator", output)
    assert done.returncode == 0, done.stderr
    return output.read_text()


@pytest.fixture(scope="module")
def components(document: str) -> list[dict[str, Any]]:
    return list(json.loads(document)["components"])


def of(components: list[dict[str, Any]], ecosystem: str) -> list[dict[str, Any]]:
    """What an installed index's, or Debian's, packages are."""
    return [c for c in components if c.get("purl", "").startswith(f"pkg:{ecosystem}/")]


def test_every_distribution_is_in_it_with_its_version(components: list[dict[str, Any]]) -> None:
    """Ours too, which come from no index and so have no address in one."""
    listed = {(c["name"].lower(), c["version"]) for c in components}
    found = {(d.metadata["Name"].lower(), d.version) for d in metadata.distributions()}
    assert found - listed == set()
    (kopf,) = [c for c in of(components, "pypi") if c["name"] == "kopf"]
    assert kopf["licenses"][0]["license"]["id"] == "MIT"
    assert kopf["purl"] == f"pkg:pypi/kopf@{metadata.version('kopf')}"


def test_debians_packages_are_in_it_as_installed_with_what_their_copyright_names(
    components: list[dict[str, Any]],
) -> None:
    ours = {c["name"]: c for c in of(components, "deb/debian")}
    assert set(ours) == {"libmagic", "prose", "silent"}
    assert ours["libmagic"]["purl"] == "pkg:deb/debian/libmagic@1:5.44-3?arch=amd64&distro=debian-12"
    assert [one["license"] for one in ours["libmagic"]["licenses"]] == [
        {"id": "BSD-2-Clause"},
        {"name": "MIT or something-else"},
    ]
    assert [one["license"] for one in ours["prose"]["licenses"]] == [{"name": "GPL-3"}]
    assert "licenses" not in ours["silent"]


def test_python_itself_is_in_it_and_the_image_has_its_distributions_version(document: str) -> None:
    said = json.loads(document)
    assert [c["version"] for c in said["components"] if c["type"] == "platform"] == [
        ".".join(map(str, sys.version_info[:3]))
    ]
    image = said["metadata"]["component"]
    assert (image["type"], image["version"]) == ("container", metadata.version("deepcoder-operator"))


def test_it_is_what_the_standard_takes(document: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None


def test_an_environment_without_what_the_image_is_named_after_is_refused(root: Path) -> None:
    done = written(root, "deepcoder-operators", root / "none.json")
    assert done.returncode == 1
    assert "has no distribution deepcoder-operators" in done.stderr
    assert not (root / "none.json").exists()
