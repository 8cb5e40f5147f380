"""The CRD files, byte for byte as they are in `crds/`."""

from __future__ import annotations

import yaml

from deepcoder_contracts.api import run, sandboxpool
from deepcoder_contracts.api.base import GROUP
from deepcoder_contracts.api.schema import custom_resource_definition

HEADER = "# Generated from the operator's types by `deepcoder-operator crds`; change those instead.\n"


def crd_files() -> dict[str, str]:
    """File name to content."""
    return {
        f"{GROUP}_{resource.plural}.yaml": HEADER
        + yaml.safe_dump(custom_resource_definition(resource), sort_keys=False, width=200, allow_unicode=True)
        for resource in (run.RESOURCE, sandboxpool.RESOURCE)
    }
