"""What must not be in an image is found wherever in it it is; what the project's own images hold is clean."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import runpy
import tarfile
from pathlib import Path
from typing import Any

import pytest

from devcluster.config import cache_root

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "image_secrets.py"))
KEY = "-----BEGIN PRIVATE KEY-----\n" + "A" * 64 + "\n-----END PRIVATE KEY-----\n"
HOSTILE: dict[str, dict[str, Any]] = {
    "pip.conf": {"files": {"etc/pip.conf": "[global]"}},
    "a private key": {"files": {"opt/key.pem": KEY}},
    "an AWS key": {"files": {"srv/settings.py": "KEY = 'AKIA" + "Q" * 16 + "'"}},
    "a password in an address": {"history": "RUN pip install --extra-index-url https://me:pass@index/simple x"},
    "the address of an index": {"environment": ["PIP_INDEX_URL=https://index.internal/simple"]},
    "a variable named as a secret": {"environment": ["HF_TOKEN=abc"]},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_an_image_must_not_hold_is_found_in_layers_history_and_environment(what: str, tmp_path: Path) -> None:
    found = list(SCRIPT["findings"](image(tmp_path, **HOSTILE[what]), "made:1"))
    assert any(what in line for line in found), found


def test_an_image_without_any_of_it_is_clean(tmp_path: Path) -> None:
    files = {"opt/venv/lib/x/tests/key.pem": KEY, "opt/app.py": "token = read()", "doc.txt": "AKIAIOSFODNN7EXAMPLE"}
    made = image(tmp_path, files=files, history="COPY src /src", environment=["PATH=/usr/bin", "PYTHONUNBUFFERED=1"])
    assert not list(SCRIPT["findings"](made, "made:1"))


@pytest.mark.long
def test_the_projects_own_images_hold_none() -> None:
    layout = cache_root() / "oci"
    index = layout / "index.json"
    named = json.loads(index.read_text())["manifests"] if index.exists() else []
    references = [(m.get("annotations") or {}).get("org.opencontainers.image.ref.name", "") for m in named]
    ours = {r.rpartition(":")[0]: r for r in references if "/deepcoder/" in r}.values()  # the newest of each
    if not ours:
        pytest.skip("no image has been built: run `make demo`")
    assert not [f"{r}: {line}" for r in ours for line in SCRIPT["findings"](layout, r)]


def image(
    folder: Path, files: dict[str, str] | None = None, history: str = "", environment: list[str] | None = None
) -> Path:
    """An OCI layout with one image of two layers, the first with the files, the second without."""

    def put(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / "sha256" / digest).write_bytes(data)
        return f"sha256:{digest}"

    layers = [put(gzip.compress(_archive(files or {}))), put(_archive({"opt/later": "x"}))]
    config = {"config": {"Env": environment or []}, "history": [{"created_by": history}]}
    manifest = {"config": {"digest": put(json.dumps(config).encode())}, "layers": [{"digest": d} for d in layers]}
    entry = {
        "digest": put(json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "made:1"},
    }
    (folder / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return folder


def _archive(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(text)
            archive.addfile(header, io.BytesIO(text.encode()))
    return out.getvalue()
