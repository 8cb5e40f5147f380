"""What a run may ask of its curation, and how the result is named and found."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from deepcoder_contracts.curation import (
    CuratedInput,
    CurationFilters,
    CurationManifest,
    CurationSpec,
    Layout,
    curation_key,
    curation_request,
    unprotected,
)
from deepcoder_contracts.layout import curation_dir, curation_journal_dir, parse_curation_dir
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_contracts.stage import DatasetSource

TACO: dict[str, Any] = {"name": "taco", "uri": "hf://org/taco"}
DIGEST = "sha256:" + "a" * 64
INPUT = CuratedInput(name="taco", uri="/taco", layout=Layout.TACO, digest=DIGEST)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [TACO, TACO]}, r"curation\.inputs repeats a name"),
        ({"inputs": [TACO], "against": [TACO, TACO]}, r"curation\.against repeats a name"),
        ({"inputs": [TACO], "filters": {"since": "2024-02-01", "until": "2024-01-01"}}, "set until to a later date"),
        ({"inputs": [TACO], "filters": {"since": "2024-01-01", "until": "2024-01-01"}}, "set until to a later date"),
        ({"inputs": [TACO], "filters": {"minPassRate": 0.5, "maxPassRate": 0.5}}, "minPassRate is not below"),
        ({"inputs": [TACO], "filters": {"maxPassRate": 0.5}}, r"set curation\.passRates"),
        ({"inputs": [TACO | {"layout": "Csv"}]}, "layout"),
        ({"inputs": [TACO | {"uri": "ftp://x"}]}, "uri"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_mend(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CurationSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "exactly one of dataset.uri"),
        ({"uri": "/x", "curation": {"inputs": [TACO]}}, "exactly one of dataset.uri"),
        ({"sha256": "a" * 64, "curation": {"inputs": [TACO]}}, r"give each of curation\.inputs its own sha256"),
    ],
)
def test_problems_are_ready_or_made(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetSource.model_validate(source)


def test_evaluation_sets_are_protected_by_where_they_are() -> None:
    spec = CurationSpec.model_validate({"inputs": [TACO], "against": [{"name": "test", "uri": "/test"}]})
    assert unprotected(spec, [("other-name", "/test")]) == []
    assert unprotected(spec, [("a", "/a"), ("t", "/test"), ("a", "/a")]) == ["a"]


def key(**changes: Any) -> str:
    settings: dict[str, Any] = {
        "inputs": [INPUT],
        "against": [INPUT],
        "pass_rates": None,
        "tokenizer": DIGEST,
        "filters": CurationFilters(),
        "max_prompt_tokens": 2048,
        "code_digest": DIGEST,
    }
    return curation_key(**settings | changes)


def test_a_key_is_of_all_that_decides_and_of_nothing_else() -> None:
    other = "sha256:" + "b" * 64
    keys = [
        key(),
        key(inputs=[INPUT.model_copy(update={"digest": other})]),
        key(inputs=[INPUT.model_copy(update={"name": "apps"})]),
        key(inputs=[INPUT.model_copy(update={"layout": None})]),
        key(inputs=[INPUT, INPUT.model_copy(update={"name": "apps"})]),
        key(against=[]),
        key(pass_rates=other),
        key(tokenizer=other),
        key(filters=CurationFilters(min_tests=6)),
        key(filters=CurationFilters(since=datetime.date(2024, 1, 1))),
        key(max_prompt_tokens=1024),
        key(code_digest=other),
    ]
    assert len(set(keys)) == len(keys)
    assert key(inputs=[INPUT.model_copy(update={"uri": "s3://elsewhere/taco"})]) == key()


def test_a_manifest_has_the_key_of_what_it_names() -> None:
    manifest = CurationManifest(
        key=key(),
        request=curation_request(CurationSpec.model_validate({"inputs": [TACO]}), "/model", 2048),
        run=RunIdentity(namespace="ml", name="demo", uid="11111111-2222-3333-4444-555555555555"),
        stage="short",
        ordinal=1,
        inputs=[INPUT],
        against=[INPUT],
        tokenizer=DIGEST,
        filters=CurationFilters(),
        max_prompt_tokens=2048,
        code_digest=DIGEST,
        dataset="short-a001/problems.jsonl",
        dataset_digest=DIGEST,
        read=2,
        kept=1,
        created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        files=[],
    )
    assert CurationManifest.from_json(manifest.to_json()) == manifest
    assert manifest.recomputed_key == manifest.key
    assert manifest.model_copy(update={"max_prompt_tokens": 1}).recomputed_key != manifest.key


def test_a_request_is_what_is_asked_for_not_what_lies_there() -> None:
    spec = CurationSpec.model_validate({"inputs": [TACO]})
    requests = {
        curation_request(spec, "/model", 2048),
        curation_request(spec, "/other", 2048),
        curation_request(spec, "/model", 1024),
        curation_request(CurationSpec.model_validate({"inputs": [TACO], "against": [TACO]}), "/model", 2048),
    }
    assert len(requests) == 4


def test_no_folder_of_a_stage_looks_like_a_curations() -> None:
    assert parse_curation_dir(curation_dir(key())) == key()
    for name in (
        "curation/step-000001.a001",
        "curation/attempts",
        "curation/export",
        curation_journal_dir(),
        "curation",
    ):
        assert parse_curation_dir(name) is None
