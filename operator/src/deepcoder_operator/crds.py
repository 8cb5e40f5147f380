"""Generates the CRD files, byte for byte as they are in `crds/`.

A map without nested maps is written on one line. Otherwise half of each file would be indentation.
"""

from __future__ import annotations

from typing import Any

import yaml

from deepcoder_contracts.api import run, sandboxpool
from deepcoder_contracts.api.base import GROUP
from deepcoder_contracts.api.schema import CustomResource, custom_resource_definition

HEADER = "# Generated from the operator's types by `deepcoder-operator crds`; change those instead.\n"


class _Dumper(yaml.SafeDumper):
    """Writes maps without nested maps on one line, except rules, which are long. Uses no YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True, so that repeated values are written in full."""
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Represent a map: a rule on several lines, any other as PyYAML decides."""
        return super().represent_mapping(tag, mapping, False if "rule" in mapping else flow_style)


def crd_files() -> dict[str, str]:
    """Return the content of each CRD file by file name."""
    return {f"{GROUP}_{each.plural}.yaml": HEADER + _written(each) for each in (run.RESOURCE, sandboxpool.RESOURCE)}


def _written(resource: CustomResource) -> str:
    definition = custom_resource_definition(resource)
    text: str = yaml.dump(
        definition, Dumper=_Dumper, sort_keys=False, width=200, allow_unicode=True, default_flow_style=None
    )
    return text
