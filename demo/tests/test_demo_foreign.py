"""A cluster of the user's own: when KUBECONFIG means one, and what is said when it will not do."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from deepcoder_demo import existing_cluster, platform
from deepcoder_demo.settings import NAMESPACE, OPERATOR_NAMESPACE, Images, SettingsError

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
    """A folder that is PATH: a kubectl that notes its KUBECONFIG, and a helm. They answer as the files beside them say;
    by default they find a cluster that nobody uses."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shown = 'while read -r line; do echo "$line"; done'
    kubectl = f"""echo "$KUBECONFIG" > {folder}/asked; read -r code < {folder}/answer
        case $code in 0) ;; *) echo refused; exit $code ;; esac
        case $* in *namespaces*) {shown} < {folder}/namespaces ;; esac"""
    helm = f"""case $1 in version) {shown} < {folder}/version; exit ;; esac
        if [ -f {folder}/values ]; then {shown} < {folder}/values; exit; fi
        echo "Error: release: not found" >&2; exit 1"""
    for name, script in (("kubectl", kubectl), ("helm", helm)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    namespaces("default", folder=folder)
    (folder / "answer").write_text("0\n")
    (folder / "version").write_text("v3.14.0\n")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def namespaces(*names: str, folder: Path, **labels: dict[str, str]) -> None:
    """Which there are, with their labels."""
    items = [{"metadata": {"name": name, "labels": labels.get(name, {})}} for name in names]
    (folder / "namespaces").write_text(json.dumps({"items": items}) + "\n")


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


@pytest.mark.parametrize(("version", "refused"), [("v3.13.3", True), ("v3.14.0", False), ("v4.0.1", False)])
def test_a_helm_that_is_too_old_is_told(version: str, refused: bool, programs: Path, variables: dict[str, str]) -> None:
    (programs / "version").write_text(f"{version}\n")
    with pytest.raises(SettingsError, match=r"helm is v3.13.3: install helm 3.14") if refused else nullcontext():
        existing_cluster.check("/a", {**variables, "PATH": str(programs)})


def test_what_the_demo_has_made_it_may_change_again(programs: Path, variables: dict[str, str]) -> None:
    made = [platform.namespace(name)["metadata"] for name in (NAMESPACE, OPERATOR_NAMESPACE)]
    namespaces("default", *(m["name"] for m in made), folder=programs, **{m["name"]: m["labels"] for m in made})
    values = platform.values(Images("o", "t", "s")) | {"prices": [{"perGpuHour": 2}]}
    (programs / "values").write_text(json.dumps(values) + "\n")
    existing_cluster.check("/a", {**variables, "PATH": str(programs)})


@pytest.mark.parametrize("values", ["null", '{"podAnnotations": null}', '{"images": {}, "podAnnotations": {"a": "b"}}'])
def test_a_release_of_others_is_not_changed(values: str, programs: Path, variables: dict[str, str]) -> None:
    (programs / "values").write_text(f"{values}\n")
    with pytest.raises(
        SettingsError, match=r"did not make the release deepcoder .*helm uninstall deepcoder -n deepcoder"
    ):
        existing_cluster.check("/a", {**variables, "PATH": str(programs)})


@pytest.mark.parametrize("name", [NAMESPACE, OPERATOR_NAMESPACE])
def test_a_namespace_of_others_is_not_changed(name: str, programs: Path, variables: dict[str, str]) -> None:
    namespaces("default", name, folder=programs)
    mend = f"kubectl label namespace {name} deepcoder.dev/made-by=demo"
    with pytest.raises(SettingsError, match=f"did not make the namespace {name}, .*{mend}"):
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
    assert "AWS_SESSION_TOKEN" not in platform.credentials("demo", found.s3)["data"]
    more = {"DEEPCODER_S3_HOST_ENDPOINT": "http://localhost:9000", "AWS_REGION": "eu-west-1", "AWS_SESSION_TOKEN": "t"}
    found = existing_cluster.cluster("/a", {**variables, **more})
    assert (found.s3.endpoint, found.s3.host_endpoint) == ("http://s3.team:9000", "http://localhost:9000")
    assert found.s3.region == "eu-west-1"
    assert platform.credentials("demo", found.s3)["data"]["AWS_SESSION_TOKEN"] == "dA=="


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
