"""The operator's own configuration: one YAML file, which the chart creates from its values.

Every setting has a default that works on a developer's machine with KUBECONFIG, so `deepcoder-operator run` needs no
file. Unsupported settings are refused here, by field, before the operator watches anything.
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
"""A TCP port; 0 for any free port."""

Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""Name of a namespace."""


class ConfigError(ValueError):
    """The configuration cannot be used. The message names the field and how to fix it."""


class Config(BaseModel):
    """A part of the configuration: immutable, camelCase. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Authentication(StrEnum):
    """How trainers' tokens are checked."""

    TOKEN_REVIEW = "TokenReview"  # noqa: S105  the API's name
    JWKS = "JWKS"


class Images(Config):
    """Default images."""

    trainer: str = ""
    """Trainer image of runs that do not set spec.image. If empty, every run must set it."""

    sandbox: str = "deepcoder-sandbox"
    """Judge image of pools that do not set spec.image."""


class Progress(Config):
    """The HTTPS endpoint that trainers report to."""

    url: Annotated[str, StringConstraints(pattern=r"^https://[^/\s]+$")] = "https://localhost:8443"
    """URL at which trainers reach the endpoint."""

    port: Port = 8443
    """Port on which the endpoint listens; 0 for any free port."""

    tls_secret: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")] = (
        "deepcoder-operator-progress-tls"  # noqa: S105  the Secret's name
    )
    """Secret in the operator's namespace with the endpoint's certificate authority. It is created if absent."""

    authentication: Authentication = Authentication.TOKEN_REVIEW
    """How trainers' tokens are checked. TokenReview: by the API server, which needs a cluster-wide permission. JWKS: by
    signature, with public keys that every account may read."""

    @property
    def host(self) -> str:
        """Host of the URL, for the certificate."""
        return urlsplit(self.url).hostname or "localhost"


class Price(Config):
    """Price of a GPU in pods with a node selector."""

    per_gpu_hour: Annotated[float, Field(ge=0)]
    """Price of one GPU for one hour."""

    node_selector: dict[str, str] = {}
    """Matches pods whose nodeSelector contains all of these labels. If empty, matches every pod."""


class Storage(Config):
    """Storage that the operator may contact on behalf of runs."""

    allowed_endpoints: list[Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")]] = []
    """S3 endpoints that runs may use. If empty, all endpoints except those on the operator's own machine or local link.
    AWS itself is always allowed."""


class OperatorConfig(Config):
    """The operator's configuration file."""

    namespace: Namespace = "deepcoder"
    """Namespace of the operator itself. It keeps its certificates there, and judges admit its pods."""

    pod_labels: dict[str, str] = {"app.kubernetes.io/name": "deepcoder-operator"}
    """Labels of the operator's pods, for NetworkPolicies that admit them."""

    lease: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)] = (
        "deepcoder-operator"
    )
    """Lease in the operator's namespace for leader election. It is created if it does not exist."""

    watch_namespaces: list[Namespace] = []
    """Namespaces to work in. If empty, all. With a list, the operator needs no permissions outside these namespaces and
    its own."""

    monitoring_namespace: Namespace | None = None
    """Namespace of Prometheus, which may then scrape the pods of runs and pools."""

    kuberay_namespace: Namespace = "kuberay-system"
    """Namespace of KubeRay, which must be able to submit jobs to the heads of runs."""

    fixed_user: bool = True
    """Whether pods of runs and pools run as user and group 1000. If false, their security contexts name none, and the
    cluster must assign user, group and fsGroup, as OpenShift does."""

    health_port: Port = 8080
    """Port of /healthz, /readyz and /metrics; 0 for any free port."""

    images: Images = Images()
    """Default images."""

    progress: Progress = Progress()
    """The HTTPS endpoint that trainers report to."""

    storage: Storage = Storage()
    """Storage that the operator may contact."""

    prices: list[Price] = []
    """Price list of GPUs. The first entry that matches a pod applies. If empty, no cost is estimated."""

    @field_validator("watch_namespaces")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("names a namespace twice: name each once")
        return value


def load_config(path: Path | None) -> OperatorConfig:
    """Load the configuration file, or the defaults if there is none. Raises `ConfigError`, which names the file and the
    field."""
    if path is None:
        return OperatorConfig()
    try:
        return OperatorConfig.model_validate(yaml.safe_load(path.read_bytes()) or {})
    except OSError as e:
        raise ConfigError(f"--config {path}: {e.strerror}") from e
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, x['loc'])) or 'file'}: {x['msg']}" for x in e.errors(include_url=False)]
        raise ConfigError(f"--config {path}: {'; '.join(wrong)}") from e
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as e:  # the parser's, for a date that is none
        raise ConfigError(f"--config {path} is not YAML: {e}") from e
