"""OCI archives: the same inputs give the same bytes, and only what a store lacks is sent."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devcluster import ociarchive, ocilayout
from devcluster.containerd import ArchiveWriter, removable
from devcluster.images import _Builder, describe, newest, stage, transfer
from devcluster.node import NodeError
from devcluster.ociarchive import StaticImage
from devcluster.ocilayout import NotInLayout, drop, layers, references, write_missing

REFERENCE = "localhost/devcluster/thing:1"


def _image(tmp_path: Path) -> StaticImage:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    return StaticImage(REFERENCE, {"/program": program}, ["/program"])


def _members(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]


def test_an_archive_is_the_same_however_often_it_is_made(tmp_path: Path) -> None:
    image = _image(tmp_path)
    ociarchive.write(image, tmp_path / "one.tar")
    ociarchive.write(image, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_an_archive_names_its_image_and_every_blob_has_its_digest(tmp_path: Path) -> None:
    ociarchive.write(_image(tmp_path), tmp_path / "image.tar")
    members = _members((tmp_path / "image.tar").read_bytes())
    (named,) = json.loads(members["index.json"])["manifests"]
    assert named["annotations"]["io.containerd.image.name"] == REFERENCE
    blobs = {name.removeprefix("blobs/sha256/"): data for name, data in members.items() if name.startswith("blobs/")}
    assert len(blobs) == 3
    assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in blobs.items())
    manifest = json.loads(blobs[named["digest"].removeprefix("sha256:")])
    config = json.loads(blobs[manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["config"]["User"] == "65532:65532"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    directory = tmp_path / "oci"
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes) -> dict[str, object]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": "x", "digest": f"sha256:{name}", "size": len(content)}

    manifest = {"config": put(b"{}"), "layers": [put(b"big"), put(b"small")]}
    entry = put(json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": REFERENCE}
    (directory / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return directory


def test_blobs_that_the_store_has_are_not_sent_again(layout: Path) -> None:
    stream = io.BytesIO()
    big = f"sha256:{hashlib.sha256(b'big').hexdigest()}"
    write_missing(layout, REFERENCE, {big}, stream)
    members = _members(stream.getvalue())
    assert b"small" in members.values()
    assert b"big" not in members.values()


def test_what_was_collected_before_its_image_named_it_is_sent_after_all(layout: Path) -> None:
    class Store:
        """One that loses what it adopted, once."""

        def __init__(self) -> None:
            self.sent: list[dict[str, bytes]] = []
            self.adopted: set[str] = set()

        def adopt(self, blobs: dict[str, Path]) -> None:
            self.adopted = set(blobs)

        def blobs(self) -> set[str]:
            return self.adopted

        def import_stream(self, write_to: ArchiveWriter) -> None:
            stream = io.BytesIO()
            write_to(stream)
            self.sent.append(_members(stream.getvalue()))
            if len(self.sent) == 1:
                self.adopted = set()
                raise NodeError("content digest sha256:…: not found")

    store = Store()
    transfer(layout, REFERENCE, store)  # type: ignore[arg-type]
    assert [b"big" in members.values() for members in store.sent] == [False, True]


def test_an_images_layers_are_told_lowest_first(layout: Path) -> None:
    assert [path.read_bytes() for path in layers(layout, REFERENCE)] == [b"big", b"small"]


def test_an_image_that_is_not_in_the_layout_is_named(layout: Path) -> None:
    with pytest.raises(NotInLayout, match="localhost/other:2 is not in"):
        write_missing(layout, "localhost/other:2", set(), io.BytesIO())


def test_a_build_context_holds_the_inputs_and_nothing_beside_them(tmp_path: Path) -> None:
    repository, context = tmp_path / "repository", tmp_path / "context"
    (repository / "part" / "src" / "__pycache__").mkdir(parents=True)
    (repository / "part" / "src" / "a.py").write_text("")
    (repository / "part" / "src" / "__pycache__" / "a.pyc").write_text("")
    (repository / "part" / "secret.txt").write_text("")
    context.mkdir()
    stage(["part/src"], context, repository)
    assert [str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()] == ["part/src/a.py"]


def test_a_dropped_image_takes_only_its_own_blobs_along(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"].append({**index["manifests"][0], "annotations": {"org.opencontainers.image.ref.name": "old"}})
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "blobs" / "sha256" / "0ld").write_text("of no image")
    assert references(layout) == [REFERENCE, "old"]
    drop(layout, ["old"])
    assert references(layout) == [REFERENCE]
    stream = io.BytesIO()
    write_missing(layout, REFERENCE, set(), stream)
    assert b"big" in _members(stream.getvalue()).values()
    assert not (layout / "blobs" / "sha256" / "0ld").exists()


def test_the_newest_versions_are_kept_and_one_used_again_counts_as_new() -> None:
    assert newest(["a", "b", "c"], "d", 3) == ["b", "c", "d"]
    assert newest(["a", "b", "c"], "a", 3) == ["b", "c", "a"]
    assert newest([], "a", 3) == ["a"]


def test_the_last_name_of_an_image_takes_the_kubelets_name_along() -> None:
    targets = {"repo:1": "sha256:m1", "sha256:c1": "sha256:m1", "repo:2": "sha256:m2", "sha256:c2": "sha256:m2"}
    assert removable(targets, {"repo:1"}) == ["repo:1", "sha256:c1"]
    assert removable({**targets, "repo:again": "sha256:m1"}, {"repo:1"}) == ["repo:1"]
    assert removable(targets, set()) == []


def test_an_image_of_another_checkout_is_made_of_its_files_alone(tmp_path: Path) -> None:
    (tmp_path / "operator").mkdir()
    (tmp_path / "operator" / "Dockerfile").write_text("FROM base\nCOPY part /part\n")
    (tmp_path / "part").write_text("older")
    other = describe("operator", "base", None, tmp_path)
    assert (other.repository, other.dockerfile, other.inputs) == (tmp_path, tmp_path / "operator/Dockerfile", ("part",))
    assert other.reference != describe("operator", "base", None).reference
    stage(other.inputs, tmp_path / "context", other.repository)
    assert (tmp_path / "context" / "part").read_text() == "older"
    (tmp_path / "part").write_text("newer")
    assert describe("operator", "base", None, tmp_path).reference != other.reference


def test_old_versions_of_an_image_go_everywhere_and_images_of_other_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(number: int) -> str:
        return f"localhost/deepcoder/operator:{number}"

    others = ["localhost/deepcoder/operator-extra:1", "localhost/devcluster/base:1"]
    everywhere = [*others, *map(version, range(1, 6))]
    removed: dict[str, Any] = {"buildah": []}
    builder: Any = object.__new__(_Builder)
    builder._artifacts, builder.layout = SimpleNamespace(cache=tmp_path), tmp_path / "oci"
    builder._buildah = SimpleNamespace(references=lambda: everywhere, remove=removed["buildah"].append)
    store: Any = SimpleNamespace(references=lambda: set(everywhere), remove=lambda names: removed.update(store=names))
    monkeypatch.setattr(ocilayout, "references", lambda layout: everywhere)
    monkeypatch.setattr(ocilayout, "drop", lambda layout, names: removed.update(layout=names))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "operator.json").write_text(json.dumps([version(number) for number in range(1, 5)]))
    builder.forget_old(SimpleNamespace(name="operator", reference=version(5)), store)
    assert removed == {"buildah": [version(1)], "store": {version(1)}, "layout": {version(1)}}
