"""The dashboard's configuration: one YAML file, which the chart makes from its values.

A mistake is refused before anything listens, by field. Without TLS only this machine's loopback is served, which
`kubectl port-forward` reaches; with a certificate other addresses are served too, on a port of its own: a bearer token
never crosses a network in the clear.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

LOOPBACK = "127.0.0.1"


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the field and the mend."""


class WebConfig(BaseModel):
    """All of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    port: Annotated[int, Field(ge=0, le=65535)] = 8090
    """Port of the page on this machine's loopback; 0 takes any that is free."""

    tls_port: Annotated[int, Field(ge=0, le=65535)] = 8443
    """Port of the page over HTTPS, on every address, where `tlsDirectory` is set."""

    health_port: Annotated[int, Field(ge=0, le=65535)] = 8091
    """Port of /healthz, /readyz and /metrics."""

    tls_directory: Path | None = None
    """Folder with tls.crt and tls.key; without it loopback alone is served."""

    watch_namespaces: tuple[str, ...] = ()
    """Namespaces whose runs are shown; empty: all."""

    allowed_endpoints: tuple[str, ...] = ()
    """S3 endpoints that runs may name; empty: any that is not on this machine or its link."""


def load_config(path: Path | None) -> WebConfig:
    """Read the file, or take the defaults; raises `ConfigError`."""
    if path is None:
        return WebConfig()
    try:
        return WebConfig.model_validate(yaml.safe_load(path.read_bytes()) or {})
    except OSError as e:
        raise ConfigError(f"--config {path}: {e.strerror}") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"--config {path} is no YAML: {e}") from e
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, x['loc'])) or 'file'}: {x['msg']}" for x in e.errors(include_url=False)]
        raise ConfigError(f"--config {path}: {'; '.join(wrong)}") from e
