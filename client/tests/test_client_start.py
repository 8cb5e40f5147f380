"""What `import deepcoder_client` gives, and what it loads for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

import deepcoder_client


def test_every_public_name_is_there() -> None:
    values = {name: getattr(deepcoder_client, name) for name in deepcoder_client.__all__}
    assert {name: value.__name__ for name, value in values.items()} == {name: name for name in values}
    assert set(values) <= set(dir(deepcoder_client))


def test_another_name_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'deepcoder_client' has no attribute 'Cluster'"):
        deepcoder_client.Cluster  # noqa: B018


def test_errors_and_settings_are_loaded_without_the_libraries() -> None:
    code = """
import sys
from deepcoder_client import NoData
from deepcoder_client.settings import Overrides
print(sorted({"botocore", "kubernetes", "pydantic", "urllib3", "yaml"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["[]"]
