"""The operator's own configuration: one YAML file, which the chart makes from its values.

Everything has a default that works on a developer's machine against KUBECONFIG, so `deepcoder-operator run` needs no
file. What cannot be done yet is refused here, by field, before anything is watched.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from pydantic.alias_generators import to_camel

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 takes any that is free."""

Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""Name of a namespace."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the field and the mend."""


class Config(BaseModel):
    """A part of the configuration: immutable, camelCase, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Authentication(StrEnum):
    """How tokens of trainers are checked."""

    TOKEN_REVIEW = "TokenReview"  # noqa: S105  the API's name
    JWKS = "JWKS"


class Images(Config):
    """Images of what the operator starts."""

    trainer: str = ""
    """Image of runs that name none; empty: every run must."""

    sandbox: str = "deepcoder-sandbox"
    """Image of judges whose pool names none."""


class Progress(Config):
    """The HTTPS endpoint that trainers report to."""

    url: Annotated[str, StringConstraints(pattern=r"^https://[^/\s]+$")] = "https://localhost:8443"
    """Under which trainers reach it."""

    port: Port = 8443
    """Port that the process listens on."""

    tls_secret: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")] = (
        "deepcoder-operator-progress-tls"  # noqa: S105  the Secret's name
    )
    """Secret of the operator's namespace that holds its certificate authority; made if absent."""

    authentication: Authentication = Authentication.TOKEN_REVIEW
    """TokenReview asks the API server, a cluster-wide right; JWKS checks signatures by keys that everybody may read."""

    @property
    def host(self) -> str:
        """Host of the URL, for the certificate."""
        return urlsplit(self.url).hostname or "localhost"


class Price(Config):
    """What a GPU costs on pods with these node selectors."""

    per_gpu_hour: Annotated[float, Field(ge=0)]
    """Price of one GPU for one hour."""

    node_selector: dict[str, str] = {}
    """Matches pods whose nodeSelector has all of these; empty matches every pod."""


class Storage(Config):
    """What the operator may talk to on behalf of runs."""

    allowed_endpoints: list[Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")]] = []
    """S3 endpoints that runs may name; empty: any but on the operator's own machine or link. AWS itself is always
    allowed."""


class OperatorConfig(Config):
    """All of it."""

    namespace: Namespace = "deepcoder"
    """Namespace of the operator itself: its certificates are kept there, and judges let its pods in."""

    pod_labels: dict[str, str] = {"app.kubernetes.io/name": "deepcoder-operator"}
    """Labels of the operator's pods, for NetworkPolicies that let it in."""

    lease: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)] = (
        "deepcoder-operator"
    )
    """Lease of the operator's namespace that the replica at work holds; made if absent."""

    watch_namespaces: list[Namespace] = []
    """Namespaces to work in; empty: all. The operator then needs no right beyond these and its own."""

    monitoring_namespace: Namespace | None = None
    """Namespace of Prometheus, which may scrape pods of runs and pools."""

    kuberay_namespace: Namespace = "kuberay-system"
    """Namespace of KubeRay, which submits jobs to the heads of runs and must be let in."""

    health_port: Port = 8080
    """Port of /healthz, /readyz and /metrics."""

    images: Images = Images()
    """Images of what the operator starts."""

    progress: Progress = Progress()
    """The endpoint that trainers report to."""

    storage: Storage = Storage()
    """What the operator may talk to."""

    prices: list[Price] = []
    """Prices of GPUs; the first that matches a pod holds. None: no cost is estimated."""

    @field_validator("watch_namespaces")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("names a namespace twice: name each once")
        return value


def load_config(path: Path | None) -> OperatorConfig:
    """Read the file, or take the defaults; raises `ConfigError` naming the file, the field and the mend."""
    if path is None:
        return OperatorConfig()
    try:
        return OperatorConfig.model_validate(yaml.safe_load(path.read_bytes()) or {})
    except OSError as e:
        raise ConfigError(f"--config {path}: {e.strerror}") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"--config {path} is no YAML: {e}") from e
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, x['loc'])) or 'file'}: {x['msg']}" for x in e.errors(include_url=False)]
        raise ConfigError(f"--config {path}: {'; '.join(wrong)}") from e
