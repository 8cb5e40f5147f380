"""Reports everything that would make the demo fail, before anything is installed or built.

`python3 -m deepcoder_demo.preflight` needs only the standard library. If KUBECONFIG names a cluster of the user's, that
cluster must answer and the variables must be set; otherwise this machine must be able to run one. Exit codes: 0, or 64
with all fixes; 1 if a check itself failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from deepcoder_demo import devcluster, existing_cluster
from deepcoder_demo.commands import CommandFailed
from deepcoder_demo.settings import SettingsError

DOCTOR_SECONDS = 60


def main() -> int:
    """Check, and say what must be mended."""
    try:
        check(os.environ)
    except (SettingsError, CommandFailed) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 64 if isinstance(error, SettingsError) else 1
    return 0


def check(environment: Mapping[str, str]) -> None:
    """Raise SettingsError when something must be mended first."""
    named = existing_cluster.named(environment, devcluster.places().kubeconfig)
    if named is None:
        devcluster.do("doctor", seconds=DOCTOR_SECONDS)
    else:
        existing_cluster.check(named, environment)


if __name__ == "__main__":
    sys.exit(main())
