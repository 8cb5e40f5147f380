"""The software bill of materials of the file system that it runs in, in CycloneDX: for the Dockerfiles' last stage.

    sbom.py --name deepcoder-operator --python /opt/venv/bin/python --output /usr/share/sbom/deepcoder-operator.cdx.json

Python's distributions, with their licences and what needs what, are listed by cyclonedx-bom, of the environment and of
the interpreter that it was made from. Debian's packages come from dpkg's own records, their licences from the copyright
files: by SPDX's identifier where Debian's name is one, and as Debian names them otherwise. The same files give the same
bytes. Fails where the environment lacks the distribution that the image is named after.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from debian.copyright import Copyright, MachineReadableFormatError, NotMachineReadableError
from debian.deb822 import Packages
from packageurl import PackageURL

SPEC = SchemaVersion.V1_6
_LIST_SECONDS = 300
_COMMON_LICENCE = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9+])")
_NAMESPACE = uuid.UUID("6a6bd0a1-6c2b-4bb6-9a0a-2f1a4a1a6a55")
"""For serial numbers that follow from the content."""


def main() -> int:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="the image, and the distribution whose version it has")
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the environment")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where Debian's records lie (%(default)s)")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    logging.getLogger("debian").setLevel(logging.ERROR)  # it tells of each old address of the format
    interpreters = [asked.python, Path(asked.python).resolve()]
    bom = assemble(asked.name, map(distributions, interpreters), debian_packages(asked.root), interpreters[1])
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(as_json(bom))
    print(f"{asked.output}: {len(bom.components)} components")
    return 0


def distributions(python: Path) -> Bom:
    """What `importlib.metadata` of an interpreter finds."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    command += ["--spec-version", SPEC.to_version(), str(python)]
    command.append("--no-validate")  # a test does; it would take ten distributions more
    listed = subprocess.run(command, capture_output=True, text=True, timeout=_LIST_SECONDS)
    if listed.returncode:
        raise SystemExit(f"sbom: {' '.join(command)} failed: {listed.stderr}")
    bom: Bom = Bom.from_json(json.loads(listed.stdout))  # type: ignore[attr-defined]
    return bom


def debian_packages(root: Path) -> Iterator[Component]:
    """What dpkg has installed."""
    release = dict(
        line.split("=", 1) for line in (root / "etc/os-release").read_text().splitlines() if "=" in line
    )  # fmt: skip
    distribution, version = (release[key].strip('"') for key in ("ID", "VERSION_ID"))
    with (root / "var/lib/dpkg/status").open(encoding="utf-8") as status:
        for package in Packages.iter_paragraphs(status, use_apt_pkg=False):
            if package["Status"].split()[-1] != "installed":
                continue
            name = package["Package"]
            qualifiers = {"arch": package["Architecture"], "distro": f"{distribution}-{version}"}
            purl = PackageURL("deb", distribution, name, package["Version"], qualifiers)
            yield Component(
                name=name,
                version=package["Version"],
                type=ComponentType.LIBRARY,
                purl=purl,
                bom_ref=purl.to_string(),
                licenses=licences(root / "usr/share/doc" / name / "copyright"),
            )


def licences(file: Path) -> list[License]:
    """Those that a copyright file names; none where it is missing, or is prose that names none of the common ones."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        paragraphs = Copyright(text.splitlines(keepends=True), strict=False).all_paragraphs()
        found = {p.license.synopsis.strip() for p in paragraphs if getattr(p, "license", None) is not None}
    except (NotMachineReadableError, MachineReadableFormatError, ValueError):
        found = set(_COMMON_LICENCE.findall(text))
    factory = LicenseFactory()
    made = [(name, factory.make_from_string(name)) for name in sorted(found) if name]
    # An expression must stand alone, and Debian's are not SPDX's.
    return [factory.make_with_name(name) if isinstance(one, LicenseExpression) else one for name, one in made]


def assemble(name: str, environments: Iterator[Bom], packages: Iterator[Component], interpreter: Path) -> Bom:
    """One document of all, each component once. The first environment is checked before anything else is listed."""
    bom = next(environments)
    versions = {component.name: component.version for component in bom.components}
    if name not in versions:
        raise SystemExit(f"sbom: the environment has no distribution {name}; it has {', '.join(sorted(versions))}")
    known = {(component.name, component.version) for component in bom.components}
    for other in environments:
        for component in other.components:
            if (component.name, component.version) not in known:
                known.add((component.name, component.version))
                component.bom_ref.value = f"{interpreter}:{component.bom_ref.value}"
                bom.components.add(component)
    version = subprocess.run([interpreter, "--version"], capture_output=True, text=True, timeout=30, check=True)
    number = version.stdout.split()[-1]
    python = PackageURL("generic", None, "python", number)
    bom.components.add(
        Component(name="python", version=number, type=ComponentType.PLATFORM, purl=python, bom_ref=python.to_string())
    )
    bom.components.update(packages)
    root = Component(name=name, version=versions[name], type=ComponentType.CONTAINER, bom_ref="image")
    bom.metadata.component = root
    bom.register_dependency(root, bom.components)
    return bom


def as_json(bom: Bom) -> str:
    """The document, its serial number made from what it says."""
    bom.metadata.timestamp = None
    bom.serial_number = uuid.UUID(int=0)
    bom.serial_number = uuid.uuid5(_NAMESPACE, _text(bom))
    return _text(bom) + "\n"


def _text(bom: Bom) -> str:
    return str(make_outputter(bom, OutputFormat.JSON, SPEC).output_as_string(indent=1))


if __name__ == "__main__":
    sys.exit(main())
