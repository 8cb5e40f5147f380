"""Why a model cannot be exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcoder_trainer.modelcard import Difference


class ExportFailed(RuntimeError):
    """What was written is not the model that was meant, or its source cannot be trusted; nothing is left behind."""


class SourceBroken(ExportFailed):
    """The source computes nothing that an export could be held to."""


class FarOff(ExportFailed):
    """An export is further from its source than it may be, unless all of that comes of rounding."""

    def __init__(self, why: str, found: Difference) -> None:
        super().__init__(why, found)
        self.found = found

    def __str__(self) -> str:
        """Say why, without figures a second time."""
        return str(self.args[0])
