"""The CRD files, byte for byte as they are in `crds/`: a line a field, or half of a file would be indentation."""

from __future__ import annotations

from typing import Any

import yaml

from deepcoder_contracts.api import run, sandboxpool
from deepcoder_contracts.api.base import GROUP
from deepcoder_contracts.api.schema import CustomResource, custom_resource_definition

HEADER = "# Generated from the operator's types by `deepcoder-operator crds`; change those instead.\n"


class _Dumper(yaml.SafeDumper):
    """Writes what has no parts of its own in one line, but for rules, which are long; and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether a value that is there twice is written twice."""
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """A mapping."""
        return super().represent_mapping(tag, mapping, False if "rule" in mapping else flow_style)


def crd_files() -> dict[str, str]:
    """File name to content."""
    return {f"{GROUP}_{each.plural}.yaml": HEADER + _written(each) for each in (run.RESOURCE, sandboxpool.RESOURCE)}


def _written(resource: CustomResource) -> str:
    definition = custom_resource_definition(resource)
    text: str = yaml.dump(
        definition, Dumper=_Dumper, sort_keys=False, width=200, allow_unicode=True, default_flow_style=None
    )
    return text
