"""A run's own curation (`dataset.curation`): once per run, before its first Train stage trains.

    find a manifest that answers the request ──► there is one: fetch the set, its bytes checked against the manifest
                     │ none
    fetch inputs ──► key ──► prepare, verify, write ──► curation/<key>/<attempt>/… ──► curation/<key>/MANIFEST.json

Verdicts are in storage (`curation/journal/`) before any decision uses them. So if an attempt is killed and its machine
is lost, the next attempt judges nothing twice. The first manifest that was put counts for the whole run, so a set that
changes at its source does not change a run that has begun. If two attempts finish at once, each has its own files; one
of them puts the manifest, and the other uses that one.

Raises DatasetError and BadConfig for inputs and settings, as reading a dataset does, and SandboxUnavailable if problems
could not be judged.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepcoder_contracts.curation import (
    CuratedInput,
    CurationManifest,
    CurationSet,
    CurationSpec,
    curation_key,
    curation_request,
)
from deepcoder_contracts.layout import MANIFEST, curation_dir, curation_journal_dir, parse_curation_dir
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.background import abandonable
from deepcoder_trainer.checkpoint.code import code_digest, versions
from deepcoder_trainer.checkpoint.errors import ObjectExists, ObjectMissing
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore, file_sha256
from deepcoder_trainer.checkpoint.transfer import download_files, put_new, upload_files
from deepcoder_trainer.curation.filters import Settings
from deepcoder_trainer.curation.journal import Journal
from deepcoder_trainer.curation.journal_storage import StoredLog
from deepcoder_trainer.curation.output import JSONL
from deepcoder_trainer.curation.progress import Display
from deepcoder_trainer.curation.rates import read_pass_rates
from deepcoder_trainer.curation.run import FILES, Curation, Means, Named, curate
from deepcoder_trainer.judge.backend import Judge
from deepcoder_trainer.problems.dataset import DatasetError, dataset_digest
from deepcoder_trainer.problems.files import data_files
from deepcoder_trainer.problems.path_metadata import EVALUATION, TRAINING
from deepcoder_trainer.rollout.answers import AnswerVerifier

log = logging.getLogger(__name__)

_TOKENIZER = (
    "tokenizer*",
    "*.jinja",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
_FIELD = "dataset.curation"


@dataclass(frozen=True)
class RunCuration:
    """The parts of an attempt that its curation uses."""

    config: StageConfig
    store: ObjectStore
    """The run's own storage."""
    sources: Sources
    workdir: Path
    model_dir: Path
    tokenizer: Any
    judge: Judge
    display: Display


@dataclass(frozen=True)
class CuratedSet:
    """The run's training problems."""

    path: Path
    """File on this machine."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""


async def curated_set(asked: RunCuration) -> CuratedSet:
    """Return the run's curated set: the committed one, or one that is made and committed now."""
    manifest = await abandonable(find_curated, asked.store, asked.config)
    if manifest is not None:
        log.info("curation %s was done before: %d problems", manifest.key[:12], manifest.kept)
        return await abandonable(_fetched, asked, manifest)
    inputs = await abandonable(_inputs, asked)
    with closing(await abandonable(_journal, asked)) as journal:
        answers = AnswerVerifier()
        try:
            report = await curate(inputs.curation, Means(asked.judge, answers, journal, asked.display))
        finally:
            await answers.close()
    committed = await abandonable(_commit, asked, inputs, report)
    log.info("curation %s: %d of %d problems are kept", committed.key[:12], committed.kept, committed.read)
    return await abandonable(_fetched, asked, committed)


def find_curated(store: ObjectStore, config: StageConfig) -> CurationManifest | None:
    """Return the run's manifest for its request, or None. If there are several, the first one that was put counts."""
    request = _request(config)
    found = [o for o in store.list("curation/") if o.key.endswith(f"/{MANIFEST}")]
    for o in sorted(found, key=lambda o: (o.modified_at, o.key)):
        key = parse_curation_dir(o.key.removesuffix(f"/{MANIFEST}"))
        if key is None:
            continue  # a manifest of a stage that is named `curation`
        try:
            manifest = CurationManifest.from_json(store.get_bytes(o.key))
        except (ValidationError, ObjectMissing) as error:
            log.warning("%s/%s is not used: %s", store.uri, o.key, error)
            continue
        if manifest.run.uid != config.run.uid or manifest.request != request:
            continue
        if not key == manifest.key == manifest.recomputed_key:
            log.warning("%s/%s is not used: its key is not that of what it names", store.uri, o.key)
            continue
        return manifest
    return None


@dataclass(frozen=True)
class _Inputs:
    """The fetched inputs, and their digests."""

    curation: Curation
    read: list[CuratedInput]
    against: list[CuratedInput]
    pass_rates: str | None
    tokenizer: str
    key: str


def _spec(config: StageConfig) -> CurationSpec:
    assert config.dataset is not None and config.dataset.curation is not None, "only called for runs that curate"  # noqa: PT018
    return config.dataset.curation


def _request(config: StageConfig) -> str:
    model = f"{config.model.uri}@{config.model.revision or ''}"
    return curation_request(_spec(config), model, config.recipe.max_prompt_tokens)


def _inputs(asked: RunCuration) -> _Inputs:
    """Fetch every set and hash it."""
    spec, config = _spec(asked.config), asked.config
    sets = [_named(asked.sources, s, TRAINING, f"{_FIELD}.inputs[{s.name}]") for s in spec.inputs]
    against = [_named(asked.sources, s, EVALUATION, f"{_FIELD}.against[{s.name}]") for s in spec.against]
    rates, rates_digest = None, None
    if spec.pass_rates is not None:
        path = asked.sources.dataset(spec.pass_rates, field=f"{_FIELD}.passRates")
        rates, rates_digest = read_pass_rates(path), f"sha256:{dataset_digest(path, data_files(path))}"
    read = [_by_content(s, n) for s, n in zip(spec.inputs, sets, strict=True)]
    checked = [_by_content(s, n) for s, n in zip(spec.against, against, strict=True)]
    tokenizer = tokenizer_digest(asked.model_dir)
    f = spec.filters
    curation = Curation(
        inputs=sets,
        output=_folder(asked) / _attempt(config),
        state=_folder(asked) / "state",
        settings=Settings(
            min_tests=f.min_tests,
            max_prompt_tokens=config.recipe.max_prompt_tokens,
            since=f.since,
            until=f.until,
            near_duplicate=f.near_duplicate,
            contamination=f.contamination,
            min_pass_rate=f.min_pass_rate,
            max_pass_rate=f.max_pass_rate,
            max_solutions=f.max_solutions,
            keep_unverified=f.keep_unverified,
        ),
        evaluations=against,
        tokenizer=asked.tokenizer,
        tokenizer_uri=config.model.uri,
        pass_rates=rates,
        pass_rates_uri=spec.pass_rates,
    )
    key = curation_key(
        inputs=read,
        against=checked,
        pass_rates=rates_digest,
        tokenizer=tokenizer,
        filters=f,
        max_prompt_tokens=config.recipe.max_prompt_tokens,
        code_digest=code_digest(),
    )
    return _Inputs(curation, read, checked, rates_digest, tokenizer, key)


def _named(sources: Sources, source: CurationSet, splits: Sequence[str], field: str) -> Named:
    named = Named(source.name, source.uri, sources.dataset(source.uri, field=f"{field}.uri"), splits, source.layout)
    if source.sha256 is not None and named.digest != source.sha256:
        raise DatasetError(
            f"{field}.sha256: {source.uri} has sha256 {named.digest}, expected {source.sha256}: it has changed or is "
            "cut; name the set you mean"
        )
    return named


def _by_content(source: CurationSet, named: Named) -> CuratedInput:
    return CuratedInput(name=source.name, uri=source.uri, layout=source.layout, digest=f"sha256:{named.digest}")


def tokenizer_digest(directory: Path) -> str:
    """Return the digest of the files that determine how many tokens a prompt has."""
    files = sorted({f for pattern in _TOKENIZER for f in directory.glob(pattern) if f.is_file()})
    lines = "".join(f"{f.name} {file_sha256(f)}\n" for f in files)
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def _journal(asked: RunCuration) -> Journal:
    writer = f"{_attempt(asked.config)}-{uuid.uuid4().hex[:8]}"
    return Journal(StoredLog(asked.store, curation_journal_dir(), writer))


def _commit(asked: RunCuration, inputs: _Inputs, report: dict[str, Any]) -> CurationManifest:
    """Upload the files, then the manifest. Return the manifest that counts, which may be another attempt's."""
    config, folder = asked.config, inputs.curation.output
    prefix = curation_dir(inputs.key)
    files = [folder / name for name in FILES if (folder / name).is_file()]
    entries = upload_files(asked.store, prefix, folder.parent, files)
    manifest = CurationManifest(
        key=inputs.key,
        request=_request(config),
        run=config.run,
        stage=config.stage.name,
        ordinal=config.ordinal,
        inputs=inputs.read,
        against=inputs.against,
        pass_rates=inputs.pass_rates,
        tokenizer=inputs.tokenizer,
        filters=_spec(config).filters,
        max_prompt_tokens=config.recipe.max_prompt_tokens,
        code_digest=code_digest(),
        versions=versions(),
        image=config.provenance.image,
        dataset=f"{folder.name}/{JSONL}",
        dataset_digest=f"sha256:{report['files'][JSONL]}",
        read=sum(report["read"].values()),
        kept=sum(report["kept"].values()),
        created_at=datetime.now(UTC),
        files=entries,
    )
    try:
        put_new(asked.store, f"{prefix}/{MANIFEST}", manifest.to_json())
    except ObjectExists:
        log.info("another attempt has committed curation %s first", inputs.key[:12])
    committed = find_curated(asked.store, config)
    assert committed is not None, "it was put just now"
    return committed


def _fetched(asked: RunCuration, manifest: CurationManifest) -> CuratedSet:
    """Return the set on this machine. Download it unless this attempt has just made it."""
    folder = _folder(asked)
    sha256 = manifest.dataset_digest.removeprefix("sha256:")
    path = folder / manifest.dataset
    if not path.is_file() or file_sha256(path) != sha256:
        folder = asked.workdir / "curated"
        entries = [e for e in manifest.files if e.path == manifest.dataset]
        download_files(asked.store, curation_dir(manifest.key), folder, entries)
        path = folder / manifest.dataset
    return CuratedSet(path, sha256)


def _folder(asked: RunCuration) -> Path:
    return asked.workdir / "curation"


def _attempt(config: StageConfig) -> str:
    return f"{config.stage.name}-a{config.ordinal:03d}"
