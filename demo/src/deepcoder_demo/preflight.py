"""Everything that would keep the demo from its end, said before anything is installed or built.

`python3 -m deepcoder_demo.preflight` needs nothing but the standard library. Where KUBECONFIG names a cluster of the
user's, that one must answer and the variables be set; else this machine must be able to run one. Exit codes: 0, or 64
with every fix; 1 if a check itself failed; 130 if it was interrupted.
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
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; nothing was changed\n")
        return 130
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
