"""The demo's manifest for its cluster: the bucket, and where problems, model and checkpoints are in it.

examples/demo.yaml names devcluster's S3 server and is applied there as it is. For another cluster, the same run is
written to a file with the user's bucket, and that file is applied, so that users can always read what runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from deepcoder_demo.settings import OUTPUT, REPOSITORY, S3Access

EXAMPLE = REPOSITORY / "examples/demo.yaml"


def load() -> dict[str, Any]:
    """The manifest as it is in the repository."""
    manifest: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    return manifest


def rendered(manifest: dict[str, Any], s3: S3Access) -> dict[str, Any]:
    """The same run with its model, problems and checkpoints in the bucket of `s3`."""
    made: dict[str, Any] = json.loads(json.dumps(manifest))  # no object is shared between stages, as aliases share them
    spec = made["spec"]
    storage = spec["checkpoint"]["s3"]
    bucket_before = f"s3://{storage['bucket']}/"
    datasets = [entry for stage in spec["stages"] for entry in stage.get("evaluate", {}).get("datasets", [])]
    for source in (spec["model"], spec["dataset"], *datasets):
        source["uri"] = f"s3://{s3.bucket}/{source['uri'].removeprefix(bucket_before)}"
    storage |= {"bucket": s3.bucket, "region": s3.region, "endpoint": s3.endpoint}
    return made


def written(s3: S3Access, folder: Path = OUTPUT) -> Path:
    """The file to apply: the example itself, or for another bucket the run, written into `folder`."""
    example = load()
    made = rendered(example, s3)
    if made == example:
        return EXAMPLE
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / EXAMPLE.name
    file.write_text(yaml.safe_dump(made, sort_keys=False))
    return file
