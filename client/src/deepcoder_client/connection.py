"""HTTP to the API server that a kubeconfig names: JSON in, JSON out, every call with a deadline.

The kubernetes package opens connections. The requests are our own, because that package has no types for custom
resources, and its errors do not say which permission was missing. A call that changes something is sent once. A read is
retried if no connection could be made. Requests that the server was too busy to process (429) are retried a few times,
after the delay that it asks for. If the server refuses the credentials (401), they are read again, and the request is
sent again if they have changed.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

from deepcoder_client import deep_json
from deepcoder_client.contexts import ActingAs
from deepcoder_client.errors import BadName, ClientError, Conflict, Forbidden, NoCluster, NotFound, Refused, Unreachable
from deepcoder_client.kubeconfig import Access, read
from deepcoder_client.permissions import Right
from deepcoder_client.settings import NO_OVERRIDES, TIMEOUT_SECONDS, Overrides
from deepcoder_contracts.api.base import GROUP, VERSION

Object = dict[str, Any]
Keep = Callable[[Object], Object]

RENEWAL_SECONDS = 60.0
"""Shortest time in seconds between two reads of the credentials after a refusal."""
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
_SHOWN = 500
_CANNOT = re.compile(r"cannot (\w+) resource")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_BUSY = 429
_BUSY_TRIES = 3
_BUSY_SECONDS = 3.0
"""Longest pause in seconds before a retry. API servers ask for one second."""
_CONNECT_TRIES = 3
_NO_CONNECTION = (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.NewConnectionError)
_PAUSE_SECONDS = 0.2
"""First pause in seconds before a retry if the server asks for none; doubled each time."""
IDLE_SECONDS = 330.0
"""Longest silence of a stream in seconds. API servers end watches after a few minutes; logs may be quiet as long."""


@dataclass(frozen=True)
class Kind:
    """A type of resource, as named in URLs and in RBAC rules."""

    plural: str
    group: str = ""
    version: str = "v1"
    page: int = 500
    """Number of objects in a page of a list. A page is in memory as text, whatever is kept of it."""

    def path(self, namespace: str | None, name: str | None = None, below: str | None = None) -> str:
        """Return the API path of a list, of an object, or of the subresource `below` an object. Raises `BadName`."""
        for part in (namespace, name):
            if part is not None and not _NAME.fullmatch(part):
                raise BadName(part)
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        within = f"/namespaces/{namespace}" if namespace else ""
        return "/".join(part for part in (f"{root}{within}/{self.plural}", name, below) if part)


RUNS = Kind("deepcoderruns", GROUP, VERSION, page=25)
POOLS = Kind("sandboxpools", GROUP, VERSION, page=25)
PODS = Kind("pods")
SECRETS = Kind("secrets")
SERVICE_ACCOUNTS = Kind("serviceaccounts")
CONFIGMAPS = Kind("configmaps")
EVENTS = Kind("events")  # of the core group: Kubernetes' own view and edit read those of events.k8s.io only since 1.35
NODES = Kind("nodes")
QUOTAS = Kind("resourcequotas")
LIMITS = Kind("limitranges")
NETWORK_POLICIES = Kind("networkpolicies", "networking.k8s.io")
RAYJOBS = Kind("rayjobs", "ray.io")
RAYCLUSTERS = Kind("rayclusters", "ray.io")


class _Silent(Unreachable):
    """A stream was silent for longer than it may be."""


class Connection:
    """A connection to an API server as one user."""

    def __init__(
        self, configuration: client.Configuration, namespace: str, timeout: float = TIMEOUT_SECONDS,
        acting: ActingAs | None = None, again: Callable[[], Access] | None = None,
    ) -> None:  # fmt: skip
        """Use a server. `namespace` is the default namespace; `timeout` bounds each call, in seconds.

        `acting` is the user to impersonate. `again` re-reads the credentials after the API server has refused them.
        """
        self.namespace, self.timeout, self.acting = namespace, timeout, acting
        self._again, self._renewing, self._not_before = again, threading.Lock(), 0.0
        self._use(configuration)

    def _use(self, configuration: client.Configuration) -> None:
        try:
            self._api = client.ApiClient(configuration)
        except (urllib3.exceptions.LocationValueError, ImportError) as error:  # the latter for socks
            raise NoCluster(
                "the proxy that clusters[].cluster.proxy-url of the kubeconfig, or else the environment, names "
                f"cannot be used: {error}"
            ) from error
        self.configuration, self._files = configuration, _files(configuration)

    @classmethod
    def open(
        cls, context: str | None = None, kubeconfig: str | Path | None = None, timeout: float = TIMEOUT_SECONDS,
        overrides: Overrides = NO_OVERRIDES,
    ) -> Connection:  # fmt: skip
        """Connect with a kubeconfig (default: KUBECONFIG, else ~/.kube/config), or in a pod with the pod's own account.

        Raises `NoCluster`.
        """
        access = read(context, kubeconfig, overrides)
        again = partial(read, context or access.context, kubeconfig, overrides)
        return cls(access.configuration, access.namespace, timeout, access.acting, again)

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self.configuration.host)

    def headers(self) -> dict[str, str]:
        """Return the headers that authenticate the user. A token from an exec plugin is renewed when it is due."""
        return {setting["key"]: setting["value"] for setting in self.configuration.auth_settings().values()}

    def socket_headers(self) -> dict[str, str]:
        """Return the headers for a WebSocket, which can carry no others. Raises `Refused` for an impersonated user."""
        if self.acting:
            raise Refused(
                f"this connection acts as {self.acting.name} (--as, or users[].user.as of your kubeconfig), which a "
                "connection into a pod cannot do: use a context whose user is that account itself"
            )
        return self.headers()

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Return one object. Raises `NotFound`."""
        right = Right("get", kind.plural, kind.group, namespace)
        return self._json("GET", kind.path(namespace, name), right, what=f"{kind.plural} {name}")

    def list(self, kind: Kind, namespace: str | None, *, keep: Keep | None = None, **query: str | int) -> Object:
        """Return a list (all pages) with its metadata. `query` has API parameters: labelSelector, fieldSelector, …

        What `keep` returns of each object takes its place, before the next one is parsed.
        """
        right = Right("list", kind.plural, kind.group, namespace)
        found: list[Object] = []
        asked: dict[str, str | int] = {"limit": kind.page, **query}
        while True:
            page = self._json("GET", kind.path(namespace), right, query=asked, keep=keep)
            found += page.get("items") or []
            if not (following := (page.get("metadata") or {}).get("continue")):
                return {**page, "items": found}
            asked["continue"] = following

    def patch(
        self, kind: Kind, namespace: str, name: str, body: Object, content: str = MERGE, **query: str | bool
    ) -> Object:
        """Patch an object, or apply it on the server side with `content=APPLY`."""
        right = Right("patch", kind.plural, kind.group, namespace)
        text = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
        return self._json(
            "PATCH", kind.path(namespace, name), right, query=text, body=body, content=content,
            what=f"{kind.plural} {name}",
        )  # fmt: skip

    def create(
        self, kind: Kind, namespace: str | None, body: Object, below: str = "", name: str | None = None
    ) -> Object:
        """Create an object, or a subresource with `name` and `below` (`serviceaccounts/NAME/token`)."""
        resource = f"{kind.plural}/{below}" if below else kind.plural
        right = Right("create", resource, kind.group, namespace)
        return self._json("POST", kind.path(namespace, name, below or None), right, body=body)

    def can_i(self, right: Right, name: str = "") -> bool:
        """Return whether the user has a permission, as the API server says."""
        asked = {"verb": right.verb, "resource": right.resource.partition("/")[0], "group": right.group}
        asked |= {"namespace": right.namespace or "", "subresource": right.resource.partition("/")[2], "name": name}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        kind = Kind("selfsubjectaccessreviews", "authorization.k8s.io")
        answer = self.create(kind, None, review | {"spec": {"resourceAttributes": asked}})
        return bool(answer.get("status", {}).get("allowed"))

    def lacking(self, rights: Iterable[Right], name: str = "") -> Right | None:
        """Return the first of several permissions that the user lacks, or None."""
        return next((right for right in rights if not self.can_i(right, name)), None)

    def lines(
        self, kind: Kind, namespace: str | None, right: Right, query: Mapping[str, str | int], path: str | None = None,
        *, idle: float = IDLE_SECONDS,
    ) -> Generator[str, None, bool]:  # fmt: skip
        """Yield the lines of a watch or a log as they arrive.

        Returns True if the server was silent for `idle` seconds, and False if it ended the stream.
        """
        try:
            answer = self._sent("GET", path or kind.path(namespace), right, query, None, None, "", idle)
        except _Silent:  # for an empty log, not even the head of the response arrives
            return True
        rest, silent = b"", False
        with answer as response:
            try:
                for piece in response.stream(65536, decode_content=True):
                    *whole, rest = (rest + piece).split(b"\n")
                    yield from (line.decode(errors="replace") for line in whole)
            except urllib3.exceptions.ReadTimeoutError:
                silent = True
            except urllib3.exceptions.HTTPError as error:
                raise Unreachable(f"the API server broke off: {error}") from error
            if rest:
                yield rest.decode(errors="replace")
        return silent

    def _json(
        self, method: str, path: str, right: Right, *, query: Mapping[str, str | int] | None = None,
        body: Object | None = None, content: str = "application/json", what: str = "",
        keep: Keep | None = None,
    ) -> Object:  # fmt: skip
        with self._sent(method, path, right, query or {}, body, content, what) as response:
            try:
                answer: Object = deep_json.parsed(response.data, keep)
            except (ValueError, urllib3.exceptions.HTTPError) as error:
                raise Unreachable(f"the API server's answer cannot be read: {error}") from error
            return answer

    def _sent(
        self, method: str, path: str, right: Right, query: Mapping[str, str | int], body: Object | None,
        content: str | None, what: str, idle: float | None = None,
    ) -> urllib3.BaseHTTPResponse:  # fmt: skip
        headers = urllib3.HTTPHeaderDict({"Accept": "application/json", "User-Agent": "deepcoder-client"})
        if body is not None:
            headers["Content-Type"] = content or "application/json"
        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        for name, value in self.acting.headers if self.acting else ():
            headers.add(name, value)

        def send() -> tuple[client.Configuration, urllib3.BaseHTTPResponse]:
            used = self.configuration
            encoded = None if body is None else json.dumps(body).encode()
            return used, self._tried(method, url, headers | self.headers(), encoded, idle)

        try:
            used, response = send()
            if response.status == HTTPStatus.UNAUTHORIZED and self._renewed(used):
                response.close()  # a request answered with 401 was not processed
                _, response = send()
        except (urllib3.exceptions.HTTPError, config.ConfigException) as error:
            late = isinstance(getattr(error, "reason", error), urllib3.exceptions.ReadTimeoutError)
            raise (_Silent if late and idle is not None else Unreachable)(
                f"the API server {self.host} does not answer: {_why(error)}; is it up, and is it the one KUBECONFIG "
                "should name?"
            ) from error
        if response.status < 400:
            return response
        with response:
            raise _error(response, right, what)

    def _tried(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, idle: float | None
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return the response. Retry only if the server certainly has not processed the request.

        All tries and the pauses between them share the call's timeout. With `idle`, the response may take longer.
        """
        ends = time.monotonic() + self.timeout
        api = self._api  # certificates that lie in memory exist as long as it does, also if another thread renews it
        pool: urllib3.PoolManager = api.rest_client.pool_manager
        busy = unconnected = 0
        while True:
            left = max(ends - time.monotonic(), 0.01)
            timeout = urllib3.Timeout(total=left) if idle is None else urllib3.Timeout(connect=left, read=idle)
            try:
                response = pool.request(
                    method, url, headers=headers, body=body, timeout=timeout, retries=urllib3.Retry(0),
                    preload_content=False,
                )  # fmt: skip
            except urllib3.exceptions.MaxRetryError as error:
                unconnected += 1
                pause = _PAUSE_SECONDS * 2 ** (unconnected - 1)
                again = method == "GET" and _not_connected(error.reason) and unconnected < _CONNECT_TRIES
                if not again or time.monotonic() + pause >= ends:
                    raise
            else:
                if response.status != _BUSY:
                    return response
                busy += 1
                asked = urllib3.Retry().get_retry_after(response)
                pause = _PAUSE_SECONDS * 2 ** (busy - 1) if asked is None else min(asked, _BUSY_SECONDS)
                if busy > _BUSY_TRIES or time.monotonic() + pause >= ends:
                    return response
                response.drain_conn()
            time.sleep(pause)

    def _renewed(self, refused: client.Configuration) -> bool:
        """Return whether other credentials than the refused ones are in use now, after reading them again.

        Kubeconfig, files and exec plugins are read once per `RENEWAL_SECONDS` at most: a plugin may open a browser.
        """
        with self._renewing:
            if self.configuration is not refused:
                return True  # another thread was quicker
            if self._again is None or time.monotonic() < self._not_before:
                return False
            self._not_before = time.monotonic() + RENEWAL_SECONDS
            try:
                found = self._again().configuration
            except ClientError:
                return False
            # Files are compared by content: renewed ones have the same names.
            shown = (found.api_key, *_files(found))
            if found.host != refused.host or shown in ((refused.api_key, *self._files), _NOTHING):
                return False
            self._use(found)
            return True


def _files(configuration: client.Configuration) -> tuple[bytes | None, bytes | None]:
    """Return the contents of the certificate file and of the key file; None for a missing file."""

    def content(file: str | None) -> bytes | None:
        try:
            return Path(file).read_bytes() if file else None
        except OSError:
            return None

    return content(configuration.cert_file), content(configuration.key_file)


_NOTHING: tuple[object, ...] = ({}, None, None)
"""The credentials after an exec plugin has failed. The kubernetes package logs the failure."""


def _not_connected(error: Exception | None) -> bool:
    """Return whether no connection was made, to the server or to the proxy in front of it."""
    if isinstance(error, urllib3.exceptions.ProxyError):
        error = error.original_error
    return isinstance(error, _NO_CONNECTION)


def _why(error: Exception) -> str:
    """Return the cause of an error, without the connection and the retries that urllib3 puts before it."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.ProxyError):
        way = "to" if _not_connected(cause) else "through"  # a proxy that answers may refuse to connect us
        return f"no connection {way} the proxy: {_why(cause.original_error)}"
    said = str(cause)
    return said.partition("): ")[2] or said


def _error(response: urllib3.BaseHTTPResponse, right: Right, what: str) -> ClientError:
    """Return an error response of the API server as a `ClientError`."""
    try:
        answer = json.loads(response.data)
        status, told = answer.get("kind") == "Status", str(answer.get("message") or "")
    except (ValueError, AttributeError, urllib3.exceptions.HTTPError):
        status, told = False, ""
    message = told[:_SHOWN] or response.reason or ""
    where = f"in namespace {right.namespace}" if right.namespace else "in the cluster"
    match response.status:
        case 401:
            return Unreachable(f"the API server answers 401 {message}; log in to the cluster again")
        case 403 if "system:anonymous" in message:
            return Unreachable(
                "the API server does not know who you are: your kubeconfig has no credentials, or its credential "
                "plugin has failed; log in to the cluster again"
            )
        case 403:
            cannot = _CANNOT.search(message)  # the missing verb may differ from the request's: apply may create
            if cannot:
                return Forbidden(replace(right, verb=cannot[1]))
            return Refused(message) if told else Forbidden(right)
        case 404 if not status or "could not find the requested resource" in message:
            missing = "the chart" if right.group == GROUP else "the component that serves it"
            return NotFound(f"the API server knows no {right.qualified}: is {missing} installed in this cluster?")
        case 404:
            return NotFound(f"no {what or right.qualified} {where}; choose another namespace with -n")
        case 409:
            return Conflict(message)
        case 400 | 415 | 422 if status:
            return Refused(message)
        case code:
            return Unreachable(f"the API server answers {code} {message}")
