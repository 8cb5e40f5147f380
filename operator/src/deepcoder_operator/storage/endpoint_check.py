"""Refuses S3 servers on the operator's own network link, or in its own pod if it runs in one.

The author of a run chooses the server, and the operator contacts it from its own place in the network, from where it
could reach the cloud's metadata service, or a proxy that a mesh has put into its pod. A name is resolved before each
request; only an egress rule stops a name that changes right after that. Servers in the chart's `s3.allowedEndpoints`
may be anywhere.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from deepcoder_contracts.uris import resolves_to_local
from deepcoder_operator.storage.s3 import StorageProblem


def vet_address(url: str, *, loopback: bool) -> None:
    """Raise `StorageProblem` if a URL's host is on the local link, or on this machine unless `loopback` allows that."""
    if resolves_to_local(url, loopback=loopback):
        raise StorageProblem(
            "EndpointNotAllowed",
            f"checkpoint.s3.endpoint: {urlsplit(url).hostname} is on the operator's own machine or link: only a server "
            "that the chart's s3.allowedEndpoints names may be there",
        )
