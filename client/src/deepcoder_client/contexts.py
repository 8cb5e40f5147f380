"""The parts of a kubeconfig that we read ourselves: its contexts, the current one, and impersonation.

The kubernetes package takes the current context of the last file in KUBECONFIG, where kubectl takes that of the first,
and it does not support impersonation. Without this module, a user would change another cluster than with kubectl, or
act with other permissions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from kubernetes import config

from deepcoder_client.errors import NoCluster

MISSHAPEN = (TypeError, ValueError, AttributeError, LookupError, RecursionError)
"""What the kubernetes package and PyYAML raise for a file with a text, a list or a mapping in each other's place."""


@dataclass(frozen=True)
class ActingAs:
    """The user that a kubeconfig impersonates (`users[].user.as`)."""

    name: str
    headers: tuple[tuple[str, str], ...]
    """Headers that name the user to the API server; a header's name may occur several times."""


def context_names(kubeconfig: str | Path | None = None) -> list[str]:
    """Return a kubeconfig's contexts (default: KUBECONFIG, else ~/.kube/config), in file order. Raises `NoCluster`."""
    file = os.fspath(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or None
    try:
        known, _ = config.list_kube_config_contexts(file)
    except (config.ConfigException, yaml.YAMLError, OSError, *MISSHAPEN) as error:
        raise NoCluster(f"no usable kubeconfig: {error}") from error
    return [str(each["name"]) for each in known]


def current_context(files: str) -> str | None:
    """Return the first current context in the files (joined as in KUBECONFIG), as kubectl does, or None."""
    for file in filter(None, files.split(os.pathsep)):
        path = Path(file).expanduser()
        content = yaml.safe_load(path.read_bytes()) if path.exists() else None
        if isinstance(content, dict) and (name := content.get("current-context")):
            return str(name)
    return None


def acting_as(user: Mapping[str, Any]) -> ActingAs | None:
    """Return whom a kubeconfig's user impersonates. Raises `ConfigException` for such fields without `as`."""
    name, uid = user.get("as"), user.get("as-uid")
    groups, extra = user.get("as-groups") or (), user.get("as-user-extra") or {}
    if not name:
        if uid or groups or extra:
            raise config.ConfigException("users[].user: as-uid, as-groups or as-user-extra without as")
        return None
    return ActingAs(str(name), tuple(_headers(str(name), uid, groups, extra)))


def _headers(name: str, uid: Any, groups: Any, extra: Any) -> Iterator[tuple[str, str]]:
    yield "Impersonate-User", _sent(name)
    if uid:
        yield "Impersonate-Uid", _sent(uid)
    for group in groups:
        yield "Impersonate-Group", _sent(group)
    for key, values in extra.items():
        for value in values:
            yield f"Impersonate-Extra-{quote(str(key).lower(), safe='')}", _sent(value)


def _sent(value: Any) -> str:
    """Return text that http.client, which writes Latin-1, sends as UTF-8, which the API server reads."""
    return str(value).encode().decode("latin-1")
