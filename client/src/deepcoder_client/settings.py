"""What a caller can set, with the defaults.

This module loads no library, so that a command line can show these values in its help without loading the client.
"""

from __future__ import annotations

from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0
"""Default of the longest wait for one response of the API server."""

SILENT_SECONDS = 120.0
"""Age from which a report is old. Trainers report every few seconds; the operator stores that once a minute."""

GPU_GB = 80.0
"""Default memory of a GPU, in GB of 10^9 bytes."""


@dataclass(frozen=True)
class Overrides:
    """kubectl's options that replace a part of a kubeconfig; None leaves that part as it is."""

    cluster: str | None = None
    user: str | None = None
    server: str | None = None
    token: str | None = None
    certificate_authority: str | None = None
    tls_server_name: str | None = None
    insecure_skip_tls_verify: bool | None = None
    as_user: str | None = None
    as_uid: str | None = None
    as_groups: tuple[str, ...] = ()

    @property
    def connects(self) -> bool:
        """True if an option sets the server or its credentials; the other options only impersonate a user."""
        return any((self.cluster, self.user, self.server, self.token, self.certificate_authority,
                    self.tls_server_name, self.insecure_skip_tls_verify))  # fmt: skip


NO_OVERRIDES = Overrides()
