"""Whose an object is: what the reference to its controller says; names and labels can be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def controller(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The reference to an object's controller."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((o for o in owners if o.get("controller")), None)


def controller_uid(obj: Mapping[str, Any]) -> str | None:
    """UID of an object's controller."""
    owner = controller(obj)
    return str(owner["uid"]) if owner else None


def owned_by(obj: Mapping[str, Any], uid: str) -> bool:
    """Whether an object's controller is this."""
    return controller_uid(obj) == uid
