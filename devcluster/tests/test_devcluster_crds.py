"""Definitions lose their prose and nothing else."""

import json
from typing import Any

import pytest
import yaml

from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root
from devcluster.crds import without_descriptions

SCHEMA = """\
properties:
  a:
    description: |-
      Several lines: with a colon,

      - and a list.
    type: string
  b:
    description: one line
      that goes on
    type: integer
  description:
    description: 'a property of that name'
    type: string
  c:
    items:
      description: in a list
      type: object
    type: array
"""


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _pruned(v) for k, v in value.items() if not (k == "description" and isinstance(v, str))}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def test_descriptions_go_and_a_property_of_that_name_stays() -> None:
    assert yaml.safe_load(without_descriptions(SCHEMA)) == _pruned(yaml.safe_load(SCHEMA))
    assert "description" in yaml.safe_load(without_descriptions(SCHEMA))["properties"]


def test_kuberays_definitions_keep_everything_that_is_validated() -> None:
    manifests = Artifacts(cache_root(), doctor.go_version()).directory("kuberay") / "manifests"
    if not manifests.is_dir():
        pytest.skip("KubeRay is not built on this machine: devcluster build")
    text = (manifests / "ray.io_rayclusters.yaml").read_text()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    short = yaml.load(without_descriptions(text), Loader=loader)
    assert json.dumps(short) == json.dumps(_pruned(yaml.load(text, Loader=loader)))
