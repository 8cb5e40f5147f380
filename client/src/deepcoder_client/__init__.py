"""DeepCoder runs from Python, for notebooks and for `kubectl deepcoder`.

client = Client()                              # from the kubeconfig
run = client.apply("deepcoder-1.5b.yaml")
run = client.wait(run.metadata.name, run.metadata.namespace, seconds=86_400)
client.folder(run).metrics()                   # a pandas DataFrame, one row per step

Names that bring a library (kubernetes, pydantic) are loaded at their first use. Every import of a module of this
package runs this file, and a program that only needs the errors or the settings must not load libraries for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepcoder_client.errors import (
    BadFile,
    BadName,
    ClientError,
    Conflict,
    Forbidden,
    NoCluster,
    NoData,
    NotFound,
    NotInTime,
    Refused,
    StorageError,
    Unreachable,
)

if TYPE_CHECKING:
    from deepcoder_client.client import Change, Client
    from deepcoder_client.connection import Connection
    from deepcoder_client.manifests import RunManifest, load, load_all
    from deepcoder_client.permissions import Right
    from deepcoder_contracts.api.run import DeepCoderRun

__all__ = [
    "BadFile",
    "BadName",
    "Change",
    "Client",
    "ClientError",
    "Conflict",
    "Connection",
    "DeepCoderRun",
    "Forbidden",
    "NoCluster",
    "NoData",
    "NotFound",
    "NotInTime",
    "Refused",
    "Right",
    "RunManifest",
    "StorageError",
    "Unreachable",
    "load",
    "load_all",
]

_MODULES = {
    "Change": "deepcoder_client.client",
    "Client": "deepcoder_client.client",
    "Connection": "deepcoder_client.connection",
    "DeepCoderRun": "deepcoder_contracts.api.run",
    "Right": "deepcoder_client.permissions",
    "RunManifest": "deepcoder_client.manifests",
    "load": "deepcoder_client.manifests",
    "load_all": "deepcoder_client.manifests",
}
"""Module of each name that is loaded at its first use."""

if not TYPE_CHECKING:  # a type checker would take every name to be there

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
