"""Errors that decide how an attempt continues, each raised in many places.

`BadConfig` means that a person must change the configuration (exit code 64), and that a retry cannot help. A lost
sampler is replaced; a lost learner ends the attempt. This module does not import numpy, for code that runs before
anything heavy is loaded.
"""

from __future__ import annotations


class BadConfig(ValueError):
    """A setting that cannot work here. The message says how to fix it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """Dotted path of the wrong setting, as in the stage config (`recipe.klCoefficient`)."""


class SamplerLost(RuntimeError):
    """A sampler's engine died. Its requests can be sent to another sampler."""


class LearnerLost(RuntimeError):
    """A rank died or did not answer in time. The attempt cannot continue."""
