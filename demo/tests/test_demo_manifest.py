"""The demo's run on another S3 server than devcluster's: everything that names the bucket follows, nothing else."""

from pathlib import Path
from typing import Any

import yaml

from deepcoder_demo import manifest
from deepcoder_demo.data import PREFIX
from deepcoder_demo.settings import CREDENTIALS_SECRET, NAMESPACE, RUN, S3Access
from devcluster import install

OURS = S3Access("http://s3.s3.svc.cluster.local:7070", "http://127.0.0.1:17070", "deepcoder", "us-east-1", "a", "s")
USERS = S3Access("https://s3.example.org", "https://s3.example.org", "team-ml", "eu-west-1", "a", "s")


def differences(one: Any, two: Any, path: str = "") -> dict[str, Any]:
    """Paths at which two documents differ, with what the second has there."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [*one, *(key for key in two if key not in one)]
        return {k: v for key in keys for k, v in differences(one.get(key), two.get(key), f"{path}.{key}").items()}
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return {k: v for i, (a, b) in pairs for k, v in differences(a, b, f"{path}[{i}]").items()}
    return {} if one == two else {path: two}


def test_the_example_names_devclusters_server_and_is_applied_as_it_is(tmp_path: Path) -> None:
    assert (OURS.bucket, OURS.region) == (install.BUCKET, install.REGION)
    assert manifest.written(OURS, tmp_path) == manifest.EXAMPLE
    assert list(tmp_path.iterdir()) == []


def test_another_bucket_is_in_every_place_that_names_one_and_nothing_else_changes() -> None:
    example = manifest.load()
    before = yaml.safe_dump(example)
    assert differences(example, manifest.rendered(example, USERS)) == {
        ".spec.model.uri": f"s3://team-ml/{PREFIX}/model",
        ".spec.dataset.uri": f"s3://team-ml/{PREFIX}/train.jsonl",
        ".spec.stages[2].evaluate.datasets[0].uri": f"s3://team-ml/{PREFIX}/heldout.jsonl",
        ".spec.checkpoint.s3.bucket": "team-ml",
        ".spec.checkpoint.s3.region": "eu-west-1",
        ".spec.checkpoint.s3.endpoint": "https://s3.example.org",
    }
    assert yaml.safe_dump(example) == before


def test_what_is_applied_elsewhere_can_be_read_afterwards(tmp_path: Path) -> None:
    file = manifest.written(USERS, tmp_path / "out")
    assert yaml.safe_load(file.read_text()) == manifest.rendered(manifest.load(), USERS)


def test_the_example_has_the_names_that_the_demo_goes_by() -> None:
    example = manifest.load()
    assert (example["metadata"]["namespace"], example["metadata"]["name"]) == (NAMESPACE, RUN)
    assert example["spec"]["checkpoint"]["s3"]["credentialsSecretRef"] == {"name": CREDENTIALS_SECRET}
