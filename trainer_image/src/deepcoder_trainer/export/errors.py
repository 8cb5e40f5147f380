"""Why a model cannot be exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcoder_trainer.modelcard import Difference


class ExportFailed(RuntimeError):
    """The written model is not the intended one, or its source cannot be trusted. Nothing is left behind."""


class SourceBroken(ExportFailed):
    """The source's logits are not finite, so no export can be compared with them."""


class FarOff(ExportFailed):
    """An export differs too much from its source, unless rounding alone explains the difference."""

    def __init__(self, why: str, found: Difference) -> None:
        super().__init__(why, found)
        self.found = found

    def __str__(self) -> str:
        """Return the reason, without repeating the figures."""
        return str(self.args[0])
