"""Reports everything that would make the demo fail, before anything is installed or built.

`python3 -m deepcoder_demo.preflight` needs only the standard library. If KUBECONFIG names a cluster of the user's, that
cluster must answer, and the variables must be set. Otherwise this machine must be able to run a cluster. Exit codes: 0,
or 64 with every fix; 1 if a check itself failed; 130 if it was interrupted.
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
    """Check, and report what must be fixed."""
    try:
        check(os.environ)
    except (SettingsError, CommandFailed) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 64 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; nothing was changed\n")
        return 130
    return 0


def check(environment: Mapping[str, str]) -> None:
    """Raise SettingsError if something must be fixed first."""
    named = existing_cluster.named(environment, devcluster.places().kubeconfig)
    if named is None:
        devcluster.do("doctor", seconds=DOCTOR_SECONDS)
    else:
        existing_cluster.check(named, environment)


if __name__ == "__main__":
    sys.exit(main())
