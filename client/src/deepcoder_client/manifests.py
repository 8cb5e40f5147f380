"""Reads a run's YAML manifest into types, so that mistakes are reported before anything is sent.

Fields that the file omits stay omitted when it is applied: the cluster fills in the defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from deepcoder_client.errors import BadFile
from deepcoder_client.yaml_files import read_documents
from deepcoder_contracts.api.base import API_VERSION, Spec
from deepcoder_contracts.api.run import MAX_NAME_LENGTH
from deepcoder_contracts.api.run_spec import RunSpec

KIND = "DeepCoderRun"


class ManifestMetadata(Spec):
    """Metadata of a run in a manifest file."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=MAX_NAME_LENGTH)]
    """Name of the run."""

    namespace: str | None = None
    """Namespace of the run (default: the client's)."""

    labels: dict[str, str] = {}
    """Labels."""

    annotations: dict[str, str] = {}
    """Annotations."""


class RunManifest(Spec):
    """A run as a manifest file describes it, before it is applied."""

    api_version: Literal["deepcoder.dev/v1alpha1"]
    """Version of the API."""

    kind: Literal["DeepCoderRun"]
    """Kind."""

    metadata: ManifestMetadata
    """Metadata."""

    spec: RunSpec
    """Spec of the run."""

    def to_object(self, namespace: str) -> dict[str, Any]:
        """Return the object to apply, with only the fields that the file sets."""
        written = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        return {**written, "metadata": {**written["metadata"], "namespace": namespace}}


def load(path: str | Path) -> RunManifest:
    """Read the single run in a YAML or JSON file, which may also hold other kinds. Raises `BadFile`."""
    runs = load_all(path)
    if len(runs) != 1:
        names = ", ".join(run.metadata.name for run in runs) or "none"
        raise BadFile(f"{path} holds {len(runs)} runs ({names}), but must hold one: use one file per run")
    return runs[0]


def load_all(path: str | Path) -> list[RunManifest]:
    """Read all runs in a file, in file order. Raises `BadFile`."""
    documents = read_documents(path)
    return [parse(d, str(path)) for d in documents if not isinstance(d, dict) or d.get("kind") == KIND]


def parse(document: Any, source: str = "the document") -> RunManifest:
    """Parse a run and ignore its status. Raises `BadFile` with one line per invalid field."""
    if not isinstance(document, dict):
        raise BadFile(f"{source} holds no object: write apiVersion: {API_VERSION}, kind: {KIND}, metadata and spec")
    try:
        return RunManifest.model_validate({k: v for k, v in document.items() if k != "status"})
    except ValidationError as error:
        raise BadFile("\n".join(f"{source}: {line}" for line in _faults(error))) from None


def _faults(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "there is no such field: check its spelling and place"
        plain = fault["type"] != "missing" and not isinstance(fault["input"], dict | list | BaseModel)
        shown = f" is {fault['input']!r}" if plain else ""
        lines.append(f"{field}{shown}: {message}")
    return lines
