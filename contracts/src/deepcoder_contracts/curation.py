"""Curation as a part of a run: what is asked for (`dataset.curation`), and the manifest of what came of it.

A run curates once. What it came to lies under `curation/<key>`, where the key is the SHA-256 of everything that
decides it, the contents of all inputs included; its manifest is put last, with `If-None-Match: *`, and names the
request it answers, so that later attempts and stages of the run find it without reading the inputs again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from deepcoder_contracts.base import Contract, Digest, DNSLabel, Record, sha256_digest
from deepcoder_contracts.manifest import FileEntry, RunIdentity
from deepcoder_contracts.uris import SourceURI

SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Layout(StrEnum):
    """How the rows of a published set are laid out. Released: the DeepCoder set, with one input a configuration."""

    OWN = "Own"
    PUBLISHED = "Published"
    TACO = "Taco"
    SYNTHETIC1 = "Synthetic1"
    LIVECODEBENCH = "LiveCodeBench"
    CODEFORCES = "Codeforces"
    RELEASED = "Released"
    MATHEMATICS = "Mathematics"


class CurationSet(Contract):
    """A published problem set."""

    name: SetName
    """Name of the set, and its source where rows name none."""

    uri: SourceURI
    """A file, or a folder of them: hf://, s3://, file:// or a path in the image."""

    layout: Layout | None = None
    """What its rows are held to. Default: told by their columns."""

    sha256: Key | None = None
    """Expected digest; a difference stops the run."""


class CurationFilters(Contract):
    """Which problems are kept. Prompts are held to recipe.maxPromptTokens."""

    min_tests: int = Field(default=5, ge=1, le=10_000)
    """Fewest tests."""

    since: datetime.date | None = None
    """First date, for sets that have dates."""

    until: datetime.date | None = None
    """First date that is too late."""

    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Similarity from which one of two problems is dropped."""

    contamination: float = Field(default=0.6, gt=0, le=1)
    """Overlap with an evaluation problem from which one is dropped."""

    min_pass_rate: float = Field(default=0, ge=0, lt=1)
    """What is solved no more often than this is dropped."""

    max_pass_rate: float = Field(default=1, gt=0, le=1)
    """What is solved this often is dropped."""

    max_solutions: int = Field(default=8, ge=1, le=1000)
    """Official solutions that are tried."""

    keep_unverified: bool = False
    """Keep problems without an official solution."""

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("filters.since is not before filters.until: set until to a later date")
        if self.min_pass_rate >= self.max_pass_rate:
            raise ValueError("filters.minPassRate is not below filters.maxPassRate: lower it")
        return self


class CurationSpec(Contract):
    """Make the training set from published ones, before the first Train stage trains."""

    inputs: Annotated[list[CurationSet], Field(min_length=1, max_length=16)]
    """Published sets."""

    against: Annotated[list[CurationSet], Field(max_length=32)] = []
    """Evaluation sets that nothing may be shared with, those of all stages among them."""

    filters: CurationFilters = CurationFilters()
    """Which problems are kept."""

    pass_rates: SourceURI | None = None
    """Samples of an evaluation of these problems, for minPassRate and maxPassRate."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for field, sets in (("inputs", self.inputs), ("against", self.against)):
            names = [s.name for s in sets]
            if len(set(names)) != len(names):
                raise ValueError(f"curation.{field} have the same name: give each its own ({', '.join(names)})")
        bounded = self.filters.min_pass_rate > 0 or self.filters.max_pass_rate < 1
        if bounded and self.pass_rates is None:
            raise ValueError("filters.minPassRate and maxPassRate need pass rates: set curation.passRates")
        return self


def unprotected(spec: CurationSpec, evaluated: Iterable[tuple[str, str]]) -> list[str]:
    """Names of the evaluation sets, given as (name, URI), that the curated set is not checked against."""
    known = {s.uri for s in spec.against}
    return list(dict.fromkeys(name for name, uri in evaluated if uri not in known))


class CuratedInput(Contract):
    """A set that was read, by content."""

    name: SetName
    """Its name."""

    uri: SourceURI
    """Where it was."""

    layout: Layout | None = None
    """The layout that was asked for."""

    digest: Digest
    """Of what was read."""


class CurationManifest(Record):
    """`curation/<key>/MANIFEST.json`: the commit of a curation."""

    key: Key
    """SHA-256 of all that decides the result, which is also the folder's name."""

    request: Digest
    """Of what the run asks for, by name and not by content: see `curation_request`."""

    run: RunIdentity
    """The run that made it."""

    stage: DNSLabel
    """The stage that made it."""

    ordinal: int = Field(ge=1)
    """The attempt that made it."""

    inputs: list[CuratedInput]
    """Published sets that were read."""

    against: list[CuratedInput] = []
    """Evaluation sets that it was checked against."""

    pass_rates: Digest | None = None
    """Of the pass rates."""

    tokenizer: Digest
    """Of the tokenizer that prompts were measured by."""

    filters: CurationFilters
    """Which problems were kept."""

    max_prompt_tokens: int = Field(ge=1)
    """Longest prompt."""

    code_digest: Digest
    """Of the trainer's own source."""

    versions: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Of Python and of packages, by name."""

    image: str | None = None
    """Trainer image reference."""

    dataset: str
    """Path of the curated set, below this folder."""

    dataset_digest: Digest
    """Of the curated set: what checkpoints say that they were trained on."""

    read: int = Field(ge=0)
    """Problems that were read."""

    kept: int = Field(ge=1)
    """Problems that are kept."""

    created_at: datetime.datetime
    """When it was written (UTC, for people)."""

    files: list[FileEntry]
    """Everything below its folder but itself."""

    @property
    def recomputed_key(self) -> str:
        """The key as this manifest's own fields have it."""
        return curation_key(
            inputs=self.inputs,
            against=self.against,
            pass_rates=self.pass_rates,
            tokenizer=self.tokenizer,
            filters=self.filters,
            max_prompt_tokens=self.max_prompt_tokens,
            code_digest=self.code_digest,
        )


def curation_key(
    *,
    inputs: Sequence[CuratedInput],
    against: Sequence[CuratedInput],
    pass_rates: str | None,
    tokenizer: str,
    filters: CurationFilters,
    max_prompt_tokens: int,
    code_digest: str,
) -> str:
    """SHA-256 (hexadecimal) of everything that decides a curated set. Where sets were does not; what they hold does."""

    def content(sets: Sequence[CuratedInput]) -> list[list[str | None]]:
        return [[s.name, s.layout, s.digest] for s in sets]

    document = {
        "inputs": content(inputs),
        "against": content(against),
        "pass_rates": pass_rates,
        "tokenizer": tokenizer,
        "filters": json.loads(filters.to_json()),
        "max_prompt_tokens": max_prompt_tokens,
        "code": code_digest,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def curation_request(spec: CurationSpec, model: str, max_prompt_tokens: int) -> str:
    """Digest of what a run asks for: two attempts with the same one want the same set, whatever lies there by now."""
    document = {"spec": json.loads(spec.to_json()), "model": model, "max_prompt_tokens": max_prompt_tokens}
    return sha256_digest(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
