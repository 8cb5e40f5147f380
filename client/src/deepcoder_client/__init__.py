"""DeepCoder runs from Python, for notebooks and for `kubectl deepcoder`.

client = Client()                              # from the kubeconfig
run = client.apply("deepcoder-1.5b.yaml")
run = client.wait(run.metadata.name, run.metadata.namespace, seconds=86_400)
client.folder(run).metrics()                   # a pandas DataFrame, one row per step
"""

from deepcoder_client.client import Change, Client
from deepcoder_client.connection import Connection
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
