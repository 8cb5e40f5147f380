"""What holds for the tests of all parts: an example of hypothesis may take as long as a busy machine makes it take.

Hypothesis fails an example that takes over 200 ms; how long something takes is measured in `benchmarks/`, never here.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
