"""Reads files that users write in YAML or JSON. Whatever is wrong with one is a `BadFile` that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deepcoder_client.errors import BadFile


def read_documents(path: str | Path) -> list[Any]:
    """Return all documents in a YAML or JSON file, without empty ones. Raises `BadFile`."""
    try:
        return [each for each in yaml.safe_load_all(Path(path).read_text()) if each is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise BadFile(f"{path} is neither JSON nor YAML: {error}") from error
    except (ValueError, LookupError, AttributeError) as error:  # the parser's, for a value that its tag does not allow
        raise BadFile(f"{path} holds a value that is none of its type, such as a date: {error}") from error
    except RecursionError as error:
        raise BadFile(f"{path} is nested too deeply") from error
