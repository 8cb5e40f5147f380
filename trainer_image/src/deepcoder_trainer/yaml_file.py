"""Reads a file that a user wrote in YAML or JSON. Whatever is wrong with it is a `BadConfig` that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deepcoder_trainer.errors import BadConfig


def read_yaml(path: Path, field: str | None = None) -> Any:
    """Return the document in a file. `field` is the option that names the file. Raises `BadConfig`."""
    named = f"{field} {path}" if field else str(path)
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadConfig(f"{named} cannot be read: {reason}", field=field) from error
    except yaml.YAMLError as error:
        raise BadConfig(f"{named} is neither JSON nor YAML: {error}", field=field) from error
    except RecursionError as error:
        raise BadConfig(f"{named} is nested too deeply", field=field) from error
    except (ValueError, LookupError, AttributeError) as error:  # the parser's, for a value that its tag does not allow
        text = f"{named} holds a value that is none of its type, such as a date: {error}"
        raise BadConfig(text, field=field) from error
