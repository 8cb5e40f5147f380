"""Searches images for what they must not contain: credentials, keys, addresses of package indexes.

    scripts/image_secrets.py LAYOUT REFERENCE...      # an OCI layout (a folder with index.json), and its images

It searches the files of every layer by name and, up to a megabyte each, by content; the history of each layer; and the
environment and labels of the config. Each layer is searched separately, because a file that a later layer removes is
still in an earlier one. Prints what it finds, and then exits with 1. Keys among the test data of libraries are
recognised by their folders.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LOOKED_AT = 1 << 20
_NAMES = re.compile(
    r"(^|/)(\.netrc|\.pypirc|pip\.conf|\.npmrc|\.git-credentials|id_(rsa|ed25519|ecdsa)|\.aws/|\.docker/|\.kube/)"
)
_TEXTS = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----[\r\n]+[A-Za-z0-9+/]{40}"),
    "an AWS key": re.compile(rb"\bA(?:KI|SI)A[A-Z0-9]{16}\b"),
    "a token of Hugging Face": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "a token of GitHub": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"),
}
_SETTINGS = {
    "a password in an address": re.compile(r"://[^\s/:@]+:[^\s/@]+@"),
    "the address of an index": re.compile(r"(?i)index[-_]url\s*=?\s*\S"),
    "a variable named as a secret": re.compile(r"(?i)\b\w*(?:password|passwd|secret|token|api_?key)\w*=\S"),
}
_TESTS = re.compile(r"(^|/)(tests?|testing|testdata|test_data|examples?|docs?)/|(^|/)testing_utils\.")
_EXAMPLES = re.compile(rb"EXAMPLE")
"""Sample keys from documentation."""


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", type=Path)
    parser.add_argument("references", nargs="+")
    asked = parser.parse_args(arguments)
    found = [f"{r}: {what}" for r in asked.references for what in findings(asked.layout, r)]
    print("\n".join(found) or f"nothing in {', '.join(asked.references)}")
    return 1 if found else 0


def findings(layout: Path, reference: str) -> Iterator[str]:
    """What an image contains and must not."""
    named = json.loads((layout / "index.json").read_text())["manifests"]
    annotation = "org.opencontainers.image.ref.name"
    (entry,) = [m for m in named if (m.get("annotations") or {}).get(annotation) == reference]
    manifest = _json(layout, entry["digest"])
    config = _json(layout, manifest["config"]["digest"])
    settings = [*(config["config"].get("Env") or ()), *map(str, (config["config"].get("Labels") or {}).items())]
    settings += [str(step.get("created_by") or "") for step in config.get("history") or ()]
    for text in settings:
        yield from (f"{what} in its config: {text[:120]}" for what, form in _SETTINGS.items() if form.search(text))
    for layer in manifest["layers"]:
        with _blob(layout, layer["digest"]).open("rb") as blob:
            yield from _in_layer(blob, layer["digest"][:19])


def _in_layer(blob: IO[bytes], name: str) -> Iterator[str]:
    zipped = blob.peek(2)[:2] == b"\x1f\x8b" if hasattr(blob, "peek") else False
    with tarfile.open(fileobj=gzip.GzipFile(fileobj=blob) if zipped else blob, mode="r|") as archive:
        for member in archive:
            if _NAMES.search(member.name):
                yield f"{member.name} in layer {name}"
            file = archive.extractfile(member) if member.isfile() and member.size <= LOOKED_AT else None
            if file is None or _TESTS.search(member.name):
                continue
            data = file.read()
            for what, form in _TEXTS.items():
                hit = form.search(data)
                if hit and not _EXAMPLES.search(hit[0]):
                    yield f"{what} in {member.name}, layer {name}"


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _json(layout: Path, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_blob(layout, digest).read_text())
    return found


if __name__ == "__main__":
    sys.exit(main())
