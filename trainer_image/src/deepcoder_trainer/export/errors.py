"""Why a model cannot be exported."""

from __future__ import annotations


class ExportFailed(RuntimeError):
    """What was written is not the model that was meant, or its source cannot be trusted; nothing is left behind."""


class SourceBroken(ExportFailed):
    """The source computes nothing that an export could be held to."""
