"""Known vulnerabilities of what is pinned, from a checkout of https://github.com/pypa/advisory-database.

    make audit ADVISORIES=path/to/advisory-database

Offline, so that it works where no vulnerability service is reached, and so that what was known on a day can be told
again. Each version in constraints/*.txt is held against its package's advisories; a withdrawn one does not count. Exits
with 1 where one holds, and says how old the newest advisory in the checkout is: what was published since is not known.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """A pinned version that an advisory names."""

    package: str
    version: str
    sets: tuple[str, ...]
    advisory: str
    aliases: tuple[str, ...]
    fixed: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("advisories", type=Path, help="checkout of pypa/advisory-database")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints", help="folder of sets of versions")
    asked = parser.parse_args(arguments)
    vulns = asked.advisories / "vulns"
    if not vulns.is_dir():
        print(f"{asked.advisories} has no folder vulns: give a checkout of pypa/advisory-database", file=sys.stderr)
        return 64
    pins = pinned(asked.constraints)
    found = [f for (name, version), sets in sorted(pins.items()) for f in findings(vulns, name, version, tuple(sets))]
    for f in found:
        mend = f"fixed in {', '.join(f.fixed)}" if f.fixed else "no fix is known"
        print(f"{f.package} {f.version} ({', '.join(f.sets)}): {f.advisory} {' '.join(f.aliases)}: {mend}")
    known = sum((vulns / name).is_dir() for name in {name for name, _ in pins})
    print(
        f"{len(pins)} pinned versions, {known} packages of them with advisories, {len(found)} findings; the newest "
        f"advisory looked at is of {newest(vulns, {name for name, _ in pins})}"
    )
    return 1 if found else 0


def pinned(folder: Path) -> dict[tuple[str, str], list[str]]:
    """(package, version) to the sets that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        for name, version in _PIN.findall(path.read_text()):
            found.setdefault((re.sub(r"[-_.]+", "-", name).lower(), version), []).append(path.stem)
    return found


def findings(vulns: Path, package: str, version: str, sets: tuple[str, ...]) -> Iterator[Finding]:
    """Advisories that name this version."""
    for path in sorted((vulns / package).glob("*.yaml")):
        advisory = _read(path)
        affected = [a for a in advisory.get("affected") or () if a["package"]["name"].lower() == package]
        if advisory.get("withdrawn") or not any(names(a, version) for a in affected):
            continue
        fixed = {e["fixed"] for a in affected for r in _ranges(a) for e in r["events"] if "fixed" in e}
        yield Finding(
            package, version, sets, advisory["id"], tuple(advisory.get("aliases") or ()), tuple(sorted(fixed))
        )


def names(affected: Mapping[str, Any], version: str) -> bool:
    """Whether one of its lists or ranges has the version."""
    if version in map(str, affected.get("versions") or ()):
        return True
    return any(within(r["events"], version) for r in _ranges(affected))


def within(events: Sequence[Mapping[str, Any]], version: str) -> bool:
    """Whether a version lies in a range: from what introduced it until what fixed it, or the last that had it."""
    found = False
    at = _parsed(version)
    for event in sorted(events, key=lambda e: _parsed(str(next(iter(e.values()))))):
        ((kind, bound),) = event.items()
        edge = _parsed(str(bound))
        if kind == "introduced" and at >= edge:
            found = True
        elif (kind == "fixed" and at >= edge) or (kind == "last_affected" and at > edge):
            found = False
    return found


def newest(vulns: Path, packages: set[str]) -> str:
    """Day of the newest advisory about any of these."""
    days = [str(_read(p).get("published", ""))[:10] for name in packages for p in (vulns / name).glob("*.yaml")]
    return max(days, default="no day")


def _ranges(affected: Mapping[str, Any]) -> list[Any]:
    return [r for r in affected.get("ranges") or () if r.get("type") == "ECOSYSTEM"]


def _parsed(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return found


if __name__ == "__main__":
    sys.exit(main())
