"""`python -m devcluster`: the same as the command `devcluster`."""

import sys

from devcluster.cli import main

sys.exit(main())
