"""Releases that meet: what one writes the other reads, within one schemaVersion, for every contract that there is.

`released.json` has the fields of the release before, by class. After a release it is written anew from its source.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

import deepcoder_contracts
from deepcoder_contracts.base import Contract, Record, VersionedContract, later
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.judge import JudgeAnswer, JudgeMessage, JudgeResponse
from deepcoder_contracts.manifest import Manifest
from deepcoder_contracts.progress import ProgressReport
from deepcoder_contracts.stage import EvaluationDataset, StageConfig

RELEASED: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("released.json").read_text())
DIGEST = "sha256:" + "0" * 64
RUN = {"namespace": "team", "name": "run", "uid": "0f0e0d0c-0000-4000-8000-000000000001"}
NEWER = {"ofALaterRelease": {"deep": 1}}


def below(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in base.__subclasses__():
        if each.__module__.startswith("deepcoder_contracts.") and ".api." not in each.__module__:
            yield each
        yield from below(each)


def classes() -> dict[str, type[BaseModel]]:
    for module in pkgutil.iter_modules(deepcoder_contracts.__path__, "deepcoder_contracts."):
        importlib.import_module(module.name)
    return {c.__name__: c for base in (Contract, JudgeMessage) for c in below(base)}


def known(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def written_at_its_default(field: FieldInfo) -> bool:
    default = field.get_default(call_default_factory=True)
    return default is not None and not (field.exclude_if and field.exclude_if(default))


@pytest.mark.parametrize("name", RELEASED)
def test_what_the_release_before_wrote_is_read(name: str) -> None:
    fields, before = known(classes()[name]), RELEASED[name]
    assert {*before["required"], *before["optional"]} <= {*fields}, "a field was removed: raise schemaVersion"
    needed = {n for n, field in fields.items() if field.is_required()}
    assert needed <= {*before["required"]}, "a field is needed that was not: raise schemaVersion, or give it a default"


@pytest.mark.parametrize("name", [n for n in RELEASED if not issubclass(classes()[n], Record | JudgeAnswer)])
def test_what_is_written_for_the_release_before_has_no_field_that_it_refuses(name: str) -> None:
    before = {*RELEASED[name]["required"], *RELEASED[name]["optional"]}
    added = {n: field for n, field in known(classes()[name]).items() if n not in before}
    assert [n for n, field in added.items() if written_at_its_default(field)] == [], "give it with `later`"


def test_every_document_is_an_instruction_or_a_record() -> None:
    documents = {
        c for c in classes().values() if issubclass(c, VersionedContract) and c not in (VersionedContract, Record)
    }
    assert {c for c in documents if not issubclass(c, Record)} == {StageConfig}


def test_a_field_of_a_later_release_is_written_where_it_says_something() -> None:
    plain = EvaluationDataset(name="lcb", uri="/lcb")
    assert json.loads(plain.to_json()) == {"name": "lcb", "uri": "/lcb"}
    other = EvaluationDataset.model_validate({"name": "lcb", "uri": "/lcb", "extraction": "LiveCodeBench"})
    assert json.loads(other.to_json())["extraction"] == "LiveCodeBench"
    assert EvaluationDataset.from_json(plain.to_json()) == plain


def test_a_later_field_takes_constraints_and_its_default() -> None:
    class Instruction(Contract):
        width: int = later(3, ge=1)

    assert (Instruction().width, Instruction().to_json(), Instruction(width=4).to_json()) == (3, b"{}", b'{"width":4}')
    with pytest.raises(ValidationError, match="width"):
        Instruction(width=0)


def manifest() -> dict[str, Any]:
    entry = {"path": "weights", "size": 1, "sha256": "0" * 64}
    return {
        **{"schemaVersion": 1, "kind": "Checkpoint", "run": RUN | NEWER, "stage": "s", "stageIndex": 0, "ordinal": 1},
        **{
            "step": 1,
            "configDigest": DIGEST,
            "codeDigest": DIGEST,
            "seed": 1,
            "worldSize": 1,
            "files": [entry | NEWER],
        },
        **{"createdAt": "2026-01-01T00:00:00Z", **NEWER},
    }


def report() -> dict[str, Any]:
    newest = {"uri": "s3://b/k", "digest": DIGEST, "step": 1, **NEWER}
    base = {"ordinal": 1, "stage": "s", "phase": "Training", "step": 1, "maxSteps": 2, "sentAt": "2026-01-01T00:00:00Z"}
    return base | {"latestCheckpoint": newest, **NEWER}


@pytest.mark.parametrize(
    ("kind", "document"),
    [(Manifest, manifest()), (ProgressReport, report()), (ExitRecord, {"code": 0, "reason": "Completed", **NEWER})],
)
def test_a_record_of_a_later_release_is_read_as_far_as_it_is_known(
    kind: type[Record], document: dict[str, Any]
) -> None:
    assert b"ofALaterRelease" not in kind.from_json(json.dumps(document)).to_json()
    with pytest.raises(ValidationError, match="schemaVersion 2"):
        kind.from_json(json.dumps(document | {"schemaVersion": 2}))


def test_a_judgement_of_a_later_release_is_read_as_far_as_it_is_known() -> None:
    verdict = {"verdict": "passed", "seconds": 0.1, **NEWER}
    answer = {"id": "1", "passed": True, "verdicts": [verdict], "seconds": 0.1, "worker": "w", **NEWER}
    assert JudgeResponse.model_validate_json(json.dumps(answer)).passed
