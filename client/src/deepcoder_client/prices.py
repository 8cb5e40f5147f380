"""A price list for GPUs, in the format of the chart's values: `prices: [{nodeSelector: {…}, perGpuHour: 2.5}]`.

The first entry whose node selector matches the pod counts, as in the operator's `status.usage.estimatedCost`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from deepcoder_client.errors import BadFile
from deepcoder_client.yaml_files import read_documents
from deepcoder_contracts.api.base import Spec


class Price(Spec):
    """The price of a GPU on pods with a node selector."""

    per_gpu_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Price of one GPU for an hour."""

    node_selector: dict[str, str] = {}
    """Matches pods whose nodeSelector has all of these entries; empty matches every pod."""


def read_prices(path: str | Path) -> list[Price]:
    """Read a list of prices, alone or under `prices` as in the chart's values. Raises `BadFile`."""
    documents = read_documents(path)
    document = documents[0] if len(documents) == 1 else None
    entries = document.get("prices") if isinstance(document, dict) else document
    try:
        return TypeAdapter(list[Price]).validate_python(entries)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in ("prices", *first["loc"]))
        raise BadFile(f"{path}: {field}: {first['msg']}; write prices: [{{perGpuHour: 2.5}}]") from None


def price_list(path: str | Path | None, for_all: float | None) -> list[Price]:
    """Return a file's prices, then one default price; either may be missing."""
    return [*(read_prices(path) if path else ()), *([Price(per_gpu_hour=for_all)] if for_all is not None else ())]


def per_gpu_hour(prices: Sequence[Price], node_selector: Mapping[str, str]) -> float | None:
    """Return the price of one GPU of a pod per hour; None without a matching price."""
    for price in prices:
        if all(node_selector.get(key) == value for key, value in price.node_selector.items()):
            return price.per_gpu_hour
    return None
