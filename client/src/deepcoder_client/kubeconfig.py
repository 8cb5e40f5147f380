"""A kubeconfig, read as kubectl reads it, with kubectl's options in place of what the file says.

The kubernetes package reads certificates, tokens, exec plugins and proxies. This module adds what the package lacks:
options that replace a part of the file, a tokenFile that is read again when its token is renewed, keys that no killed
process leaves behind, and servers on this machine that are reached past the proxy of the environment. Raises
`NoCluster` if no file says which cluster is meant.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from kubernetes import client, config
from kubernetes.config.kube_config import ConfigNode, KubeConfigLoader, KubeConfigMerger

from deepcoder_client import inline_files
from deepcoder_client.contexts import MISSHAPEN, ActingAs, acting_as, current_context
from deepcoder_client.errors import NoCluster
from deepcoder_client.settings import NO_OVERRIDES, Overrides
from deepcoder_contracts.uris import names_this_machine

POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TOKEN_FILE_SECONDS = 60.0
"""Seconds for which a token from a file is used before the file is read again, as in kubectl."""
_GIVEN = "of the command line"
"""Name of the entries that options add to those of the files."""


@dataclass(frozen=True)
class Access:
    """A server with the user's credentials, the context's namespace, and the user that requests impersonate."""

    configuration: client.Configuration
    namespace: str
    acting: ActingAs | None = None
    context: str | None = None
    """The chosen context; None if the options or the pod's own account replace it."""


def read(
    context: str | None = None, kubeconfig: str | Path | None = None, overrides: Overrides = NO_OVERRIDES
) -> Access:
    """Read a kubeconfig (default: KUBECONFIG, else ~/.kube/config), or in a pod the pod's own account."""
    file = os.fspath(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        return _from_files(file, context, overrides)
    except (config.ConfigException, yaml.YAMLError, OSError, *MISSHAPEN) as error:
        why = f"{file} does not hold one" if isinstance(error, MISSHAPEN) else str(error)
        try:
            if context or kubeconfig or overrides.connects:
                raise config.ConfigException("a kubeconfig was named explicitly")
            configuration = client.Configuration()
            config.load_incluster_config(client_configuration=configuration)
            return Access(configuration, POD_NAMESPACE.read_text().strip(), acting_as(_as_somebody(overrides)))
        except (config.ConfigException, OSError):
            raise NoCluster(
                f"no usable kubeconfig: {why}. Set KUBECONFIG or --kubeconfig to one, or choose one of its "
                "contexts with --context"
            ) from error


def _from_files(file: str, context: str | None, overrides: Overrides) -> Access:
    merger = KubeConfigMerger(file)
    name = context or current_context(file)
    merged, chosen = merger.config, dict[str, Any]()
    if overrides.server and not name:  # like kubectl, need no file if --server is given
        merged = ConfigNode("", {"clusters": [], "users": [], "contexts": []})
    elif merged is None:
        raise config.ConfigException(f"there is no file {file}")
    else:
        chosen = merged["contexts"].get_with_name(name or merged["current-context"])["context"].value
    cluster = _cluster(merged, overrides.cluster or chosen.get("cluster"), overrides)
    user = _user(merged, overrides.user or chosen.get("user"), overrides)
    context_ = {"cluster": cluster.value["name"], "user": user.value["name"]}
    # Add entries instead of changing those of the files, to which a renewed token may be written back.
    for kind, entry in (("clusters", cluster), ("users", user)):
        if entry.value["name"] == _GIVEN:
            merged.value[kind].append(entry)
    merged.value["contexts"].append(ConfigNode("contexts", {"name": _GIVEN, "context": context_}))
    configuration = client.Configuration()
    loader = partial(KubeConfigLoader, merged, _GIVEN, config_base_path=None, config_persister=merger.save_changes)
    inline_files.load(loader, configuration)
    if not re.match(r"https?://", str(configuration.host or "")):
        raise config.ConfigException(f"clusters[].cluster.server: {configuration.host!r} is not a URL")
    if configuration.proxy and "://" not in configuration.proxy:
        configuration.proxy = f"http://{configuration.proxy}"  # as kubectl and curl do
    if names_this_machine(str(configuration.host)) and "proxy-url" not in cluster.value["cluster"]:
        # As kubectl does. With proxy and no_proxy both set, WebSockets do not read the environment themselves.
        past = str(urlsplit(configuration.host).hostname)
        configuration.no_proxy = ",".join(filter(None, (configuration.no_proxy, past)))
    said = user.value.get("user") or {}
    if token_file := said.get("tokenFile"):
        _TokenFile(Path(user.path or file).expanduser().parent / token_file).keep(configuration)
    return Access(
        configuration, str(chosen.get("namespace") or "default"), acting_as({**said, **_as_somebody(overrides)}), name
    )


def _cluster(merged: ConfigNode, name: str | None, overrides: Overrides) -> ConfigNode:
    """Return the named entry, or if there are options, a new entry that combines it with them."""
    given = {
        "server": overrides.server,
        "certificate-authority": overrides.certificate_authority
        and str(Path(overrides.certificate_authority).absolute()),
        "tls-server-name": overrides.tls_server_name,
        "insecure-skip-tls-verify": overrides.insecure_skip_tls_verify,
    }
    given = {key: value for key, value in given.items() if value}
    node = merged["clusters"].get_with_name(name, safe=not overrides.cluster and "server" in given)
    if not given:
        return node
    kept = dict(node["cluster"].value) if node is not None else {}
    if "server" in given:
        kept.pop("tls-server-name", None)
    if "certificate-authority" in given or "insecure-skip-tls-verify" in given:
        for key in ("certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify"):
            kept.pop(key, None)
    return ConfigNode("clusters", {"name": _GIVEN, "cluster": {**kept, **given}}, getattr(node, "path", None))


def _user(merged: ConfigNode, name: str | None, overrides: Overrides) -> ConfigNode:
    """Return the named entry. With --token, return a new one with that token and the entry's impersonation only."""
    node = merged["users"].get_with_name(name, safe=not overrides.user)
    if node is not None and not overrides.token:
        return node
    said = (node.value.get("user") if node is not None else None) or {}
    kept = {key: value for key, value in said.items() if key == "as" or key.startswith("as-")}
    return ConfigNode("users", {"name": _GIVEN, "user": kept | ({"token": overrides.token} if overrides.token else {})})


def _as_somebody(overrides: Overrides) -> dict[str, Any]:
    """Return the fields of users[].user that the options replace."""
    given = {"as": overrides.as_user, "as-uid": overrides.as_uid, "as-groups": list(overrides.as_groups)}
    return {key: value for key, value in given.items() if value}


class _TokenFile:
    """The token in a file that another program renews. It takes precedence over a token in the kubeconfig."""

    def __init__(self, path: Path) -> None:
        self._path, self._token, self._read = path, "", 0.0

    def keep(self, configuration: client.Configuration) -> None:
        """Make `configuration` send the file's token, and read the file again as it is renewed."""
        self._token = self._path.read_text().strip()
        if not self._token:
            raise config.ConfigException(f"users[].user.tokenFile: {self._path} is empty")
        self._read = time.monotonic()
        configuration.refresh_api_key_hook = self._renew
        self._set(configuration)

    def _renew(self, configuration: client.Configuration) -> None:
        if time.monotonic() >= self._read + TOKEN_FILE_SECONDS:
            self._read = time.monotonic()
            with suppress(OSError):  # the file may be missing during a renewal; the last token may still be valid
                self._token = self._path.read_text().strip() or self._token
        self._set(configuration)

    def _set(self, configuration: client.Configuration) -> None:
        configuration.api_key["BearerToken"] = f"Bearer {self._token}"
