"""The owner of an object, from its controller reference. Names and labels prove nothing: anyone can set them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME_CONFLICT = "NameConflict"
"""Reason of a wait for a name that an object of somebody else has."""

STILL_ENDING = "StillEnding"
"""Reason of a wait for a name that an object on its way out has."""


def controller(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the reference to an object's controller, or None."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((o for o in owners if o.get("controller")), None)


def controller_uid(obj: Mapping[str, Any]) -> str | None:
    """Return the UID of an object's controller, or None."""
    owner = controller(obj)
    return str(owner["uid"]) if owner else None


def owned_by(obj: Mapping[str, Any], uid: str) -> bool:
    """Whether an object's controller has this UID."""
    return controller_uid(obj) == uid


def is_left_over(obj: Mapping[str, Any], kind: str, name: str) -> bool:
    """Whether an object that is not ours belonged to an earlier owner of our kind and name. Garbage collection removes
    it."""
    owner = controller(obj)
    return owner is not None and (owner.get("kind"), owner.get("name")) == (kind, name)
