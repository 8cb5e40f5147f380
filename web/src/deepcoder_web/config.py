"""The dashboard's configuration: one YAML file, which the chart creates from its values.

A mistake is refused, by field, before anything listens. Without TLS the dashboard serves only the loopback address,
which `kubectl port-forward` reaches. With a certificate it also serves all other addresses, on a separate port. So a
bearer token never crosses a network unencrypted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

LOOPBACK = "127.0.0.1"


class ConfigError(ValueError):
    """The configuration cannot be used. The message names the field and how to fix it."""


class WebConfig(BaseModel):
    """The dashboard's configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    port: Annotated[int, Field(ge=0, le=65535)] = 8090
    """Port of the dashboard on the loopback address; 0 for any free port."""

    tls_port: Annotated[int, Field(ge=0, le=65535)] = 8443
    """Port of the dashboard over HTTPS, on all addresses. Used only if tlsDirectory is set."""

    health_port: Annotated[int, Field(ge=0, le=65535)] = 8091
    """Port of /healthz, /readyz and /metrics; 0 for any free port."""

    tls_directory: Path | None = None
    """Folder with tls.crt and tls.key. Default: no HTTPS, only the loopback address."""

    watch_namespaces: tuple[str, ...] = ()
    """Namespaces whose runs are shown. If empty, all."""

    allowed_endpoints: tuple[str, ...] = ()
    """S3 endpoints that runs may use. If empty, all endpoints except those on this machine or its local link."""


def load_config(path: Path | None) -> WebConfig:
    """Load the configuration file, or the defaults if there is none. Raises `ConfigError`."""
    if path is None:
        return WebConfig()
    try:
        return WebConfig.model_validate(yaml.safe_load(path.read_bytes()) or {})
    except OSError as e:
        raise ConfigError(f"--config {path}: {e.strerror}") from e
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, x['loc'])) or 'file'}: {x['msg']}" for x in e.errors(include_url=False)]
        raise ConfigError(f"--config {path}: {'; '.join(wrong)}") from e
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as e:  # the parser's, for a date that is none
        raise ConfigError(f"--config {path} is not YAML: {e}") from e
