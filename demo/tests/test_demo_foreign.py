"""A cluster of the user's own: when KUBECONFIG means one, and what is said when it will not do."""

import json
from pathlib import Path

import pytest

from deepcoder_demo import existing_cluster
from deepcoder_demo.settings import SettingsError

OURS = Path("/cache/devcluster/main/kubeconfig")


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    images = tmp_path / "images.json"
    images.write_text(json.dumps({"operator": "r/o:1", "trainer": "r/t:1", "sandbox": "r/s:1"}))
    return {
        "DEEPCODER_IMAGES": str(images),
        "DEEPCODER_S3_ENDPOINT": "http://s3.team:9000",
        "DEEPCODER_S3_BUCKET": "team-ml",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is PATH: a kubectl that notes its KUBECONFIG and answers as `answer` says, and a helm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = (
        f'#!/bin/sh\necho "$KUBECONFIG" > {folder}/asked\nread -r code < {folder}/answer\necho refused; exit $code\n'
    )
    for name in existing_cluster.PROGRAMS:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (folder / "answer").write_text("0\n")
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (None, None),
        ("", None),
        (str(OURS), None),
        (f"{OURS}:", None),
        ("/home/me/config", "/home/me/config"),
        (f"/home/me/config:{OURS}", f"/home/me/config:{OURS}"),
        ("/a:/b", "/a:/b"),
    ],
)
def test_kubeconfig_means_a_cluster_of_the_users_unless_it_is_devclusters_own_file(
    value: str | None, meant: str | None
) -> None:
    assert existing_cluster.named({} if value is None else {"KUBECONFIG": value}, OURS) == meant


def test_a_list_of_kubeconfigs_reaches_kubectl_whole(programs: Path, variables: dict[str, str]) -> None:
    found = existing_cluster.check("/a:/b", {**variables, "PATH": str(programs)})
    assert (programs / "asked").read_text() == "/a:/b\n"
    assert found.kubeconfig == "/a:/b"


def test_a_kubeconfig_that_names_no_reachable_cluster_is_an_error_with_the_mend(
    programs: Path, variables: dict[str, str]
) -> None:
    (programs / "answer").write_text("1\n")
    with pytest.raises(SettingsError, match=r"(?s)KUBECONFIG=/a .*does not answer.*refused.*unset KUBECONFIG"):
        existing_cluster.check("/a", {**variables, "PATH": str(programs)})


def test_missing_programs_are_named(programs: Path, variables: dict[str, str]) -> None:
    (programs / "helm").unlink()
    with pytest.raises(SettingsError, match="needs helm on PATH"):
        existing_cluster.check("/a", {**variables, "PATH": str(programs)})


@pytest.mark.parametrize("missing", existing_cluster.VARIABLES)
def test_missing_variables_are_named_and_only_they(missing: str, variables: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=f"then also needs {missing}: "):
        existing_cluster.cluster("/a", {**variables, missing: ""})


def test_all_missing_variables_are_named_together() -> None:
    with pytest.raises(SettingsError, match=f"then also needs {', '.join(existing_cluster.VARIABLES)}: "):
        existing_cluster.cluster("/a", {})


def test_the_variables_say_everything_of_the_cluster(variables: dict[str, str]) -> None:
    found = existing_cluster.cluster("/a", variables)
    assert not found.ours
    assert found.images.trainer == "r/t:1"
    assert (found.s3.endpoint, found.s3.host_endpoint) == ("http://s3.team:9000", "http://s3.team:9000")
    assert (found.s3.bucket, found.s3.region) == ("team-ml", "us-east-1")
    more = {"DEEPCODER_S3_HOST_ENDPOINT": "http://localhost:9000", "AWS_REGION": "eu-west-1"}
    found = existing_cluster.cluster("/a", {**variables, **more})
    assert (found.s3.endpoint, found.s3.host_endpoint) == ("http://s3.team:9000", "http://localhost:9000")
    assert found.s3.region == "eu-west-1"


@pytest.mark.parametrize("content", [None, "not json", "[]", '{"operator": "o", "trainer": "t"}'])
def test_a_file_of_images_that_is_none_is_named_with_the_keys_it_needs(
    content: str | None, tmp_path: Path, variables: dict[str, str]
) -> None:
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=r"DEEPCODER_IMAGES=.*other.json must be a JSON file with the keys"):
        existing_cluster.cluster("/a", {**variables, "DEEPCODER_IMAGES": str(file)})


def test_images_that_are_no_references_are_told_by_name(variables: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"operator": "o:1", "trainer": {"reference": "t:1"}, "sandbox": "s:1"}))
    with pytest.raises(SettingsError, match=r"must hold a string for trainer"):
        existing_cluster.cluster("/a", {**variables, "DEEPCODER_IMAGES": str(file)})
