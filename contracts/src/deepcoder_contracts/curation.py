"""Curation as part of a run: the request (`dataset.curation`) and the manifest of the result.

A run curates once. The result lies under `curation/<key>`, where the key is the SHA-256 of everything that determines
it, including the contents of all inputs. The manifest is written last, with `If-None-Match: *`. It names the request
that it answers, so later attempts and stages of the run find the result without reading the inputs again.
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
    """Row layout of a published set. Released is the DeepCoder set, with one input per configuration."""

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
    """Name of the set. It is also the source of rows that name none."""

    uri: SourceURI
    """Location of a file or of a folder of files: hf://, s3://, file:// or a path in the image."""

    layout: Layout | None = None
    """Row layout of the set. Default: detected from the columns."""

    sha256: Key | None = None
    """Expected SHA-256 of the set. If it differs, the run stops."""


class CurationFilters(Contract):
    """Which problems to keep. Prompts longer than recipe.maxPromptTokens are always dropped."""

    min_tests: int = Field(default=5, ge=1, le=10_000)
    """Smallest number of tests that a problem must have."""

    since: datetime.date | None = None
    """First day of publication, as YYYY-MM-DD. Earlier problems are dropped; problems without a date are kept."""

    until: datetime.date | None = None
    """End of the period of publication, as YYYY-MM-DD. Problems from this day on are dropped."""

    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Similarity of two statements, from 0 to 1, at which one of the two problems is dropped."""

    contamination: float = Field(default=0.6, gt=0, le=1)
    """Overlap with an evaluation problem, from 0 to 1, at which a problem is dropped."""

    min_pass_rate: float = Field(default=0, ge=0, lt=1)
    """Problems with this pass rate or a lower one are dropped. Needs passRates."""

    max_pass_rate: float = Field(default=1, gt=0, le=1)
    """Problems with this pass rate or a higher one are dropped. Needs passRates."""

    max_solutions: int = Field(default=8, ge=1, le=1000)
    """Largest number of official solutions to try per problem."""

    keep_unverified: bool = False
    """Whether to keep problems that have no official solution."""

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("filters.since is not before filters.until: set until to a later date")
        if self.min_pass_rate >= self.max_pass_rate:
            raise ValueError("filters.minPassRate is not below filters.maxPassRate: lower it")
        return self


class CurationSpec(Contract):
    """Makes the training set from published sets, before the first Train stage trains."""

    inputs: Annotated[list[CurationSet], Field(min_length=1, max_length=16)]
    """Published sets to take problems from."""

    against: Annotated[list[CurationSet], Field(max_length=32)] = []
    """Evaluation sets with which the training set must not overlap. List the evaluation sets of all stages."""

    filters: CurationFilters = CurationFilters()
    """Which problems to keep."""

    pass_rates: SourceURI | None = None
    """Location of samples from an evaluation of these problems. Required for minPassRate and maxPassRate."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for field, sets in (("inputs", self.inputs), ("against", self.against)):
            names = [s.name for s in sets]
            if len(set(names)) != len(names):
                raise ValueError(f"curation.{field} repeats a name: give each set its own ({', '.join(names)})")
        bounded = self.filters.min_pass_rate > 0 or self.filters.max_pass_rate < 1
        if bounded and self.pass_rates is None:
            raise ValueError("filters.minPassRate and maxPassRate need pass rates: set curation.passRates")
        return self


def unprotected(spec: CurationSpec, evaluated: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names of those evaluation sets, given as (name, URI), that the curated set is not checked against."""
    known = {s.uri for s in spec.against}
    return list(dict.fromkeys(name for name, uri in evaluated if uri not in known))


class CuratedInput(Contract):
    """A set that was read, identified by content."""

    name: SetName
    """Name of the set."""

    uri: SourceURI
    """Location of the set."""

    layout: Layout | None = None
    """Requested layout."""

    digest: Digest
    """Digest of the content that was read."""


class CurationManifest(Record):
    """`curation/<key>/MANIFEST.json`: the commit of a curation."""

    key: Key
    """SHA-256 of everything that determines the result. It is also the name of the folder."""

    request: Digest
    """Digest of the run's request, by name and not by content: see `curation_request`."""

    run: RunIdentity
    """The run that made the set."""

    stage: DNSLabel
    """The stage that made the set."""

    ordinal: int = Field(ge=1)
    """Number of the attempt that made the set."""

    inputs: list[CuratedInput]
    """Published sets that were read."""

    against: list[CuratedInput] = []
    """Evaluation sets that the result was checked against."""

    pass_rates: Digest | None = None
    """Digest of the pass rates."""

    tokenizer: Digest
    """Digest of the tokenizer that measured the prompts."""

    filters: CurationFilters
    """Filters that were applied."""

    max_prompt_tokens: int = Field(ge=1)
    """Longest prompt, in tokens."""

    code_digest: Digest
    """Digest of the trainer's own source."""

    versions: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Versions of Python and of packages, by name."""

    image: str | None = None
    """Image reference of the trainer."""

    dataset: str
    """Path of the curated set, relative to this folder."""

    dataset_digest: Digest
    """Digest of the curated set. Checkpoints record it as their dataset digest."""

    read: int = Field(ge=0)
    """Number of problems that were read."""

    kept: int = Field(ge=1)
    """Number of problems that were kept."""

    created_at: datetime.datetime
    """Time at which the manifest was written (UTC, for display only)."""

    files: list[FileEntry]
    """All files in the manifest's folder except the manifest."""

    @property
    def recomputed_key(self) -> str:
        """The key, computed from this manifest's own fields."""
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
    """Return the SHA-256 (hexadecimal) of everything that determines a curated set: contents, but not locations."""

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
    """Return the digest of a run's request. Attempts with the same digest want the same set, even if a source has
    changed."""
    document = {"spec": json.loads(spec.to_json()), "model": model, "max_prompt_tokens": max_prompt_tokens}
    return sha256_digest(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
