"""A reduced description of S3 for botocore: only the calls that we make, without documentation and other services.

By default botocore holds 12 MB of descriptions for an S3 client, and creates a method for each of 116 calls per client.
If this leaves out something that is needed, every storage test fails at the first call that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from botocore.loaders import Loader

_CALLS = (
    "CreateSession", "DeleteObjects", "GetObject", "HeadBucket", "HeadObject", "ListObjectsV2", "PutObject",
)  # fmt: skip
"""The calls that we make, and two that botocore makes by itself: CreateSession for directory buckets, and HeadBucket
for a bucket in another region."""


class SlimLoader(Loader):
    """Loads botocore's descriptions without the parts that are not used."""

    def load_data_with_path(self, name: str) -> Any:
        """Return the reduced description, which is cached for later calls, and its path."""
        data, path = super().load_data_with_path(name)
        if name == "endpoints":
            for partition in data["partitions"]:
                partition["services"] = {k: v for k, v in partition["services"].items() if k == "s3"}
        elif name.startswith("s3/") and name.endswith("/service-2"):
            _keep_calls(data)
        return data, path


def _keep_calls(model: dict[str, Any]) -> None:
    """Remove all calls but ours, and the shapes that our calls do not use."""
    calls = {name: call for name, call in model["operations"].items() if name in _CALLS}
    shapes, found, left = model["shapes"], {}, list(_shapes_in(calls.values()))
    while left:
        name = left.pop()
        if name not in found:
            found[name] = shapes[name]
            left += _shapes_in([shapes[name]])
    model["operations"], model["shapes"] = calls, found
    for description in (calls, found):
        _drop_documentation(description)


def _shapes_in(values: Iterable[Any]) -> Iterable[str]:
    """Yield the names of all shapes that these values refer to."""
    for value in values:
        if isinstance(value, dict):
            if isinstance(value.get("shape"), str):
                yield value["shape"]
            yield from _shapes_in(value.values())
        elif isinstance(value, list):
            yield from _shapes_in(value)


def _drop_documentation(value: Any) -> None:
    if isinstance(value, dict):
        if isinstance(value.get("documentation"), str):
            del value["documentation"]
        for inner in value.values():
            _drop_documentation(inner)
    elif isinstance(value, list):
        for inner in value:
            _drop_documentation(inner)
