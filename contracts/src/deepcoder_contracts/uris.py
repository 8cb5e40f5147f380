"""Where things may be: the forms of address that settings take."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

SourceURI = Annotated[str, StringConstraints(pattern=r"^(hf://|s3://|file:///|/)[^\s]+$")]
"""`hf://org/name`, `s3://bucket/key`, `file:///path`, or a path in the image."""
