"""Reports what the images consist of: extracts their SBOMs, and writes a page with their sizes and largest parts.

    scripts/image_report.py --sbom build/sbom       for `make sbom`
    scripts/image_report.py --sizes PAGE            for `make image-sizes`

The images are devcluster's, from the same Dockerfiles that users build, and are built if necessary. The sizes of other
images, such as the CUDA image, are not known here. Fails with devcluster's message if an image cannot be built.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from devcluster import doctor, images, ocilayout
from devcluster.artifacts import Artifacts
from devcluster.config import DOCKERFILES, cache_root

_PACKAGES = "opt/venv/lib/python3.11/site-packages/"
_SHOWN = 8
_CHUNK = 1 << 20
MB = 1_000_000


def main() -> int:
    """Extract SBOMs, write the page, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbom", type=Path, metavar="DIRECTORY", help="put each image's SBOM there")
    parser.add_argument("--sizes", type=Path, metavar="PAGE", help="measure the images and write this page")
    asked = parser.parse_args()
    if asked.sbom is None and asked.sizes is None:
        parser.error("give --sbom, --sizes or both")
    layout, references = images.exported(Artifacts(cache_root(), doctor.go_version()), DOCKERFILES)
    if asked.sbom is not None:
        asked.sbom.mkdir(parents=True, exist_ok=True)
        for name, reference in references.items():
            target = asked.sbom / f"deepcoder-{name}.cdx.json"
            target.write_bytes(read(layout, reference, f"usr/share/sbom/{target.name}"))
            print(target)
    if asked.sizes is not None:
        asked.sizes.write_text(_page(layout, references))
        print(asked.sizes)
    return 0


def read(layout: Path, reference: str, path: str) -> bytes:
    """The content of a file in an image, from the topmost layer that has it."""
    for layer in reversed(ocilayout.layers(layout, reference)):
        with tarfile.open(layer) as archive:
            for member in archive:
                if member.name.removeprefix("./") == path and (content := archive.extractfile(member)):
                    return content.read()
    raise FileNotFoundError(f"{reference} has no {path}")


def parts(files: Mapping[str, int]) -> Counter[str]:
    """Bytes by part that could be left out: each distribution's folder, and each second-level folder of the rest."""
    found: Counter[str] = Counter()
    for name, size in files.items():
        if name.startswith(_PACKAGES):
            found[name.removeprefix(_PACKAGES).partition("/")[0]] += size
        else:
            found["/" + "/".join(name.split("/")[:2])] += size
    return found


def _files(layers: list[Path]) -> dict[str, int]:
    """Files and their sizes, each from the topmost layer that has it."""
    found: dict[str, int] = {}
    for layer in layers:
        with tarfile.open(layer) as archive:
            found |= {member.name.removeprefix("./"): member.size for member in archive if member.isfile()}
    return found


def _compressed(layer: Path) -> int:
    """Bytes of a layer as a registry stores it: gzip at its usual level."""
    packer, size = zlib.compressobj(6, wbits=31), 0
    with layer.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


def _page(layout: Path, references: Mapping[str, str]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
    sizes: dict[Path, int] = {}
    rows, large = [], []
    for name, reference in references.items():
        layers = ocilayout.layers(layout, reference)
        for layer in layers:
            sizes.setdefault(layer, _compressed(layer))
        unpacked, packed = sum(layer.stat().st_size for layer in layers), sum(sizes[layer] for layer in layers)
        rows.append(f"| {name} | {unpacked / MB:,.0f} | {packed / MB:,.0f} | {len(layers)} |")
        large += [
            f"| {name} | `{part}` | {size / MB:,.0f} |" for part, size in parts(_files(layers)).most_common(_SHOWN)
        ]
    return "\n".join(_lines(commit.stdout.strip(), rows, large)) + "\n"


def _lines(commit: str, rows: list[str], large: list[str]) -> Iterator[str]:
    yield from (
        f"# Sizes of the images, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "",
        f"`make image-sizes` at commit {commit}: the images that devcluster builds from the Dockerfiles, on its own",
        "Debian 12 base; the trainer's for CPUs, with torch's CPU build. What is in them: [images.md](../images.md).",
        "",
        "| image | MB unpacked | MB in a registry (gzip) | layers |",
        "|---|---|---|---|",
        *rows,
        "",
        "What is large: folders of `site-packages` by their names, and the rest by path.",
        "",
        "| image | part | MB |",
        "|---|---|---|",
        *large,
    )


if __name__ == "__main__":
    sys.exit(main())
