"""Where an S3 server that a run names must not be: on the operator's own link, nor in its pod where it runs in one.

The author of a run chooses the server, and the operator asks it from where it stands itself: beside the metadata of its
cloud, and whatever a mesh has put into its pod. A name is looked up before each request; one that changes right after
that is what an egress rule is for. What the chart's `s3.allowedEndpoints` names may be anywhere.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from deepcoder_contracts.uris import resolves_to_local
from deepcoder_operator.storage.s3 import StorageProblem


def vet_address(url: str, *, loopback: bool) -> None:
    """Raise `StorageProblem` for such an address; `loopback` lets this machine's own pass."""
    if resolves_to_local(url, loopback=loopback):
        raise StorageProblem(
            "EndpointNotAllowed",
            f"checkpoint.s3.endpoint: {urlsplit(url).hostname} is on the operator's own machine or link: only a server "
            "that the chart's s3.allowedEndpoints names may be there",
        )
