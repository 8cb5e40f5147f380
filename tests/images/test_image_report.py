"""What the images' report tells: a file as the uppermost layer has it, and sizes by what could be done without."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REFERENCE = "localhost/deepcoder/operator:1"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "image_report.py"
    spec = importlib.util.spec_from_file_location("image_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image of two layers, the upper of which has one of the lower's files anew."""
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes) -> dict[str, Any]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": "x", "digest": f"sha256:{name}", "size": len(content)}

    lower = packed({"usr/share/sbom/a.json": b"older", "usr/lib/big": b"x" * 3000, "opt/venv/bin/python": b"12"})
    packages = "opt/venv/lib/python3.11/site-packages"
    upper = packed(
        {
            "./usr/share/sbom/a.json": b"newer",
            f"{packages}/torch/lib/x.so": b"x" * 500,
            f"{packages}/torch/y.py": b"x" * 20,
        }
    )
    entry = put(json.dumps({"config": put(b"{}"), "layers": [put(lower), put(upper)]}).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": REFERENCE}
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return tmp_path


def test_a_file_is_the_uppermost_layers(report: ModuleType, layout: Path) -> None:
    assert report.read(layout, REFERENCE, "usr/share/sbom/a.json") == b"newer"
    with pytest.raises(FileNotFoundError, match=r"has no usr/share/sbom/b\.json"):
        report.read(layout, REFERENCE, "usr/share/sbom/b.json")


def test_sizes_are_by_distribution_and_by_folder_each_file_once(report: ModuleType, layout: Path) -> None:
    page = report._page(layout, {"operator": REFERENCE})
    assert "| operator | `/usr/lib` | 0 |" in page
    files = report._files(report.ocilayout.layers(layout, REFERENCE))
    assert report.parts(files) == {"torch": 520, "/usr/lib": 3000, "/usr/share": 5, "/opt/venv": 2}
    unpacked = sum(layer.stat().st_size for layer in report.ocilayout.layers(layout, REFERENCE))
    assert f"| operator | {unpacked / 1e6:,.0f} |" in page
