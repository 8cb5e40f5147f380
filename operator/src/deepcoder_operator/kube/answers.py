"""Reads answers of the API server: errors by their status and words, events of a watch, bodies that may not be JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from deepcoder_operator.kube import errors

Object = dict[str, Any]

RETRIED = frozenset({429, 500, 502, 503, 504})
_WEBHOOK = "failed calling webhook"
"""Part of the server's message if it could not call a webhook."""
_MALFORMED = frozenset({400, 422})
_STRICT = "strict decoding error"
_UNKNOWN_FIELD = re.compile(r'unknown field \\?"([^"\\]+)')
"""Part of the server's message about an unknown field, if the request said to refuse unknown fields."""
_DENIED = ("denied the request", "denied request")
"""Parts of the server's message if a webhook or a policy refused the request. By default a webhook's refusal has status
400, and a policy's 422, as if the object were malformed. A webhook may choose 409, as if the object had changed."""
_DENYING = _MALFORMED | {409}
_BY_STATUS: Mapping[int, type[errors.KubeError]] = {
    400: errors.Invalid,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.Gone,
    422: errors.Invalid,
}


def event_of(line: bytes, keep: Callable[[Object], Object]) -> tuple[str, Object]:
    """Return the type and what is kept of the object of a watch's line. Raises the error that it reports."""
    event = json.loads(line)
    obj = event["object"]
    if event["type"] == "ERROR":
        raise error_of(obj.get("code", 0), obj)
    return event["type"], keep(obj)


def content_of(data: bytes, what: str, parse: Callable[[bytes], Object] = json.loads) -> Object:
    """Parse the body of a successful answer. It may not be JSON, because a proxy may answer with a page of its own."""
    try:
        return parse(data) if data else {}
    except ValueError as e:
        raise errors.KubeError(f"{what}: the answer is not JSON: is KUBECONFIG's server the API server?") from e


def refusal_in(data: bytes) -> Object:
    """Parse the body of an error, which is a Status or anything else."""
    try:
        out = json.loads(data)
    except ValueError:
        return {"message": data[:500].decode(errors="replace")}
    return out if isinstance(out, dict) else {"message": str(out)[:500]}


def error_of(status: int, answer: Object) -> errors.KubeError:
    """Return the error for an answer's HTTP status and its body."""
    message = str(answer.get("message") or answer.get("reason") or f"HTTP {status}")
    if status in RETRIED and _WEBHOOK in message:
        return errors.WebhookAway(message, status)
    if status in _MALFORMED and _STRICT in message and (unknown := _UNKNOWN_FIELD.findall(message)):
        return errors.UnknownFields(message, status, unknown)
    if status in _DENYING and any(words in message for words in _DENIED):
        return errors.Forbidden(message, status)
    return _BY_STATUS.get(status, errors.Unavailable if status in RETRIED else errors.KubeError)(message, status)
