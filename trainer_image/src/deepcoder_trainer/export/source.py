"""The source of an export: a checkpoint or export whose chain is verified to the root before a weight is read.

A source is named by its folder (s3://…, file://… or a path), by its MANIFEST.json, or by its run's folder, which means
the run's newest export or, if it has none, its newest checkpoint. Every link of the chain must hold, and every file
that is read is checked against the manifest, because a card must not state an origin that is unknown. An export is read
as it is, and must not contain files that its manifest does not list. Of a checkpoint only the weights are downloaded.
Configuration and tokenizer come from the run's starting model, and must have the digests of what the attempt read.
Manifests from before these digests were recorded have none: then the files are used as they are today, and the card
says so, with their digests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deepcoder_contracts.layout import MANIFEST, RUN
from deepcoder_contracts.lineage import StoredCheckpoint
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, ParentRef
from deepcoder_contracts.stage import ModelSource
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing
from deepcoder_trainer.checkpoint.listing import read_listing
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore, join_key
from deepcoder_trainer.checkpoint.transfer import download_files
from deepcoder_trainer.checkpoint.verify import Link, check_file, walk_chain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.results import EvaluationResults
from deepcoder_trainer.evaluation.stored_results import read_evaluation
from deepcoder_trainer.export.errors import ExportFailed
from deepcoder_trainer.learner.rank_settings import LEARNER_DIR, METADATA
from deepcoder_trainer.modelconfig import model_files

log = logging.getLogger(__name__)

_FOLDERS = re.compile(r"^(?P<run>.+?)/[^/]+/(export/)?step-\d{6,}\.a\d{3,}$")


@dataclass(frozen=True)
class Place:
    """A committed model and its verified chain."""

    ref: ParentRef
    """Its URI, and the digest that covers its whole lineage."""

    manifest: Manifest
    """Its manifest."""

    chain: tuple[Link, ...]
    """The links of the chain, its own first; all are verified."""


@dataclass(frozen=True)
class Measured:
    """An evaluation of the source."""

    key: str
    context_tokens: int
    """Response limit in tokens."""
    samples: int
    """Responses per problem."""
    figures: Mapping[str, float]
    """`eval/<set>/…`."""


@dataclass(frozen=True)
class Fetched:
    """Local files, checked against the manifest."""

    pretrained: Path
    """Folder with config.json and the tokenizer, and for an export also the weights."""

    shards: Path | None
    """For a checkpoint, the folder with the shards of its weights."""


def find(uri: str, endpoint: str | None, region: str | None) -> Place:
    """Find the model that `uri` names. Raises `BadConfig` if there is none, `ExportFailed` if its chain is broken."""
    uri = uri.rstrip("/").removesuffix(f"/{MANIFEST}")
    store = open_storage(uri, endpoint, region)
    if store.head(MANIFEST) is None:
        if store.head(RUN) is None:
            raise BadConfig(
                f"--source {uri} holds neither {MANIFEST} nor {RUN}: name a checkpoint, an export or a run's folder",
                field="--source",
            )
        uri = f"{uri}/{_newest(store)}"
    chain = tuple(walk_chain(uri, deep=False, endpoint=endpoint, region=region))
    if problems := [f"{link.uri}: {problem}" for link in chain for problem in link.problems]:
        raise ExportFailed(
            f"the lineage of {uri} does not hold, so it is not exported ({'; '.join(problems[:3])}): "
            f"`deepcoder-trainer verify {uri}` says all of it; choose a checkpoint before the damage"
        )
    first = chain[0]
    assert first.manifest is not None, "a link without problems has a manifest"
    assert first.digest is not None, "and a digest"
    if first.manifest.kind is ManifestKind.EVALUATION:
        raise BadConfig(f"--source {uri} is an evaluation: name the export that it measured", field="--source")
    return Place(ParentRef(uri=uri, digest=first.digest), first.manifest, chain)


def fetch(place: Place, sources: Sources, workdir: Path) -> Fetched:
    """Download the files; those of the source are checked by SHA-256.

    Raises `CheckpointDamaged`, and `BadConfig` if the base model is gone.
    """
    if place.manifest.kind is ManifestKind.EXPORT:
        return Fetched(sources.model(ModelSource(uri=place.ref.uri)), None)
    model, revision = place.manifest.model, None
    if model is None:
        raise BadConfig(f"--source {place.ref.uri} does not say the model that its run began with", field="--source")
    if model.startswith("hf://"):
        model, _, revision = model.partition("@")
    base = sources.model(ModelSource(uri=model, revision=revision or None))
    _check_base(place.manifest, base)
    return Fetched(base, _shards(place, sources, workdir))


def _check_base(manifest: Manifest, base: Path) -> None:
    """Check that configuration and tokenizer are what the attempt read, if the manifest has their digests."""
    before, now = manifest.model_files, model_files(base)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if before and changed:
        raise ExportFailed(
            f"{manifest.model} has another {', '.join(changed)} than when the checkpoint was made from it: export from "
            "an export of the run, which has its own, or bring back what it was (a run's model.revision pins it)"
        )


def evaluations(place: Place, endpoint: str | None, region: str | None) -> list[Measured]:
    """Return the evaluations of exactly this export from its run's folder, oldest first; none if it is gone."""
    match = _FOLDERS.match(place.ref.uri)
    if match is None:
        return []
    store = open_storage(match["run"], endpoint, region)
    found = [(m, r) for m, r in _evaluations(store) if m.parent is not None and m.parent.digest == place.ref.digest]
    return [
        Measured(
            key=results.key,
            context_tokens=int(results.inputs["context_tokens"]),
            samples=int(results.inputs["samples_per_problem"]),
            figures=manifest.metrics,
        )
        for manifest, results in sorted(found, key=lambda each: each[0].created_at)
    ]


def agreed(measured: Iterable[Measured]) -> dict[str, float]:
    """Return the figures for the manifest, which cannot say how they were measured: a figure that two evaluations give
    (at different lengths, say) is left out."""
    given: dict[str, list[float]] = {}
    for each in measured:
        for name, value in each.figures.items():
            given.setdefault(name, []).append(value)
    return {name: values[0] for name, values in given.items() if len(values) == 1}


def as_uri(text: str, option: str) -> str:
    """Return a path as a file:// URI, and a URI as it is. Raises `BadConfig` for other schemes."""
    parts = urlsplit(text)
    if not parts.scheme:
        return f"file://{Path(text).absolute()}"
    if parts.scheme not in ("s3", "file") or bool(parts.netloc) != (parts.scheme == "s3"):
        raise BadConfig(f"{option} {text} is neither s3://bucket/prefix, file:///path nor a path", field=option)
    return text


def _shards(place: Place, sources: Sources, workdir: Path) -> Path:
    """Return the folder of the files with weights: a local checkpoint's own, else a download."""
    from deepcoder_trainer.export.tensors import CheckpointTensors

    store = open_storage(place.ref.uri, sources.endpoint, sources.region)
    entries = {entry.path: entry for entry in place.manifest.files}
    metadata = store.get_bytes(f"{LEARNER_DIR}/{METADATA}")
    try:
        names = [METADATA, *CheckpointTensors.files(metadata)]
        wanted = [entries[f"{LEARNER_DIR}/{name}"] for name in names]
    except (ValueError, KeyError) as error:
        raise CheckpointDamaged(
            f"{place.ref.uri}/{LEARNER_DIR}/{METADATA} does not fit its manifest: {error}"
        ) from error
    return _local(store, wanted, workdir) / LEARNER_DIR


def _local(store: ObjectStore, wanted: list[FileEntry], workdir: Path) -> Path:
    parts = urlsplit(store.uri)
    if parts.scheme == "file":
        if problems := [p for entry in wanted for p in check_file(store, entry, deep=True)]:
            raise CheckpointDamaged(f"{store.uri}: {'; '.join(problems[:3])}")
        return Path(parts.path)
    download_files(store, "", workdir / "source", wanted)
    return workdir / "source"


def _newest(store: ObjectStore) -> str:
    """Return a run's newest export that counts, else the newest checkpoint, of the last stage that has one."""
    objects = store.list("")
    stages = {o.key.split("/", 1)[0] for o in objects if "/" in o.key}
    exports: list[StoredCheckpoint] = []
    checkpoints: list[StoredCheckpoint] = []
    for stage in stages:
        listing = read_listing(o for o in objects if o.key.startswith(f"{stage}/"))
        exports += [c for c in listing.exports()[:1] if c.path in listing.with_payload]
        checkpoints += [c for c in listing.candidates() if c.path in listing.with_payload][:1]
    found = [(read_manifest(store, c.path)[0], c) for c in exports or checkpoints]
    if not found:
        raise BadConfig(f"--source {store.uri} holds neither an export nor a checkpoint yet", field="--source")
    return max(found, key=lambda item: (item[0].stage_index, item[0].step))[1].path


def _evaluations(store: ObjectStore) -> Iterator[tuple[Manifest, EvaluationResults]]:
    """Return the evaluations that are still as they were committed; others are ignored."""
    for found in store.list("eval/"):
        if not found.key.endswith(f"/{MANIFEST}"):
            continue
        try:
            yield read_evaluation(store, join_key(*found.key.split("/")[:-1]))
        except (ObjectMissing, CheckpointDamaged) as error:
            log.warning("an evaluation is left out of the card: %s", error)
