"""The one error that means: a person must change the configuration (exit code 64), retrying cannot help."""

from __future__ import annotations


class BadConfig(ValueError):
    """A setting that cannot work here; the message says how to mend it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """Dotted path of the setting at fault, as in the stage config (`recipe.klCoefficient`)."""
