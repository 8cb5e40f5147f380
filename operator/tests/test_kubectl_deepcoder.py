"""`kubectl deepcoder` on a real API server, S3 server and operator, for users with few rights, found by a real kubectl.

Most commands run in this process: a Python that starts for each would take longer than all that they do.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3_server
import yaml
from played_run import PlayedRun
from run_manifests import LONGER, TRAIN, run_manifest

from deepcoder_cli.__main__ import main
from deepcoder_operator.kube.resources import RUNS
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

pytestmark = [pytest.mark.apiserver, pytest.mark.s3, pytest.mark.early]


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Typed = Callable[..., Answer]


@pytest.fixture(scope="module")
def typed(played: PlayedRun) -> Typed:
    """Run a command as a user; `viewer` has the chart's view role and nothing else, `editor` Kubernetes' own edit."""

    def type_(command: str, user: str = "editor", **environment: str) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in {"KUBECONFIG": str(played.users[user]), "COLUMNS": "200", **environment}.items():
                patch.setenv(name, value)
            code = main(shlex.split(command))
        return Answer(code, out.getvalue(), err.getvalue())

    return type_


@pytest.fixture(scope="module")
def shell(played: PlayedRun, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """The same in a shell, with the real kubectl."""
    kubectl = Artifacts(cache_root(), doctor.go_version()).kubectl
    if not kubectl.exists():
        pytest.skip("kubectl has not been built: run `python -m devcluster build`")
    home = tmp_path_factory.mktemp("home")

    def type_(command: str, user: str = "editor") -> Answer:
        path = f"{kubectl.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PATH": path, "HOME": str(home), "KUBECONFIG": str(played.users[user])}
        done = subprocess.run(
            ["bash", "-c", command], env=own, cwd=home, capture_output=True, text=True, timeout=120, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return type_


OWN = {"AWS_ACCESS_KEY_ID": s3_server.ACCESS, "AWS_SECRET_ACCESS_KEY": s3_server.SECRET}


def stored(played: PlayedRun, name: str) -> dict[str, Any]:
    return played.call(played.cluster.kube.get(RUNS, played.namespace, name))


def said(answer: Answer, code: int = 0) -> str:
    assert answer.returncode == code, answer.stdout + answer.stderr
    return answer.stdout


def test_kubectl_finds_it(shell: Typed) -> None:
    assert "demo" in said(shell("kubectl deepcoder status", "viewer"))
    assert shell("kubectl deepcoder status nobody").returncode == 3


def test_a_viewer_sees_runs_and_is_told_that_pods_are_withheld(typed: Typed) -> None:
    one = said(typed("status demo", "viewer"))
    assert "Complete" in one
    assert "lack the permission to list pods" in " ".join(one.replace("│", " ").split())
    runs = {run["metadata"]["name"]: run for run in json.loads(said(typed("status -o json", "viewer")))["items"]}
    assert runs["demo"]["status"]["phase"] == "Complete"


@pytest.mark.parametrize(
    ("command", "user", "right", "role"),
    [
        ("status", "stranger", "list deepcoderruns.deepcoder.dev in namespace", "deepcoder-operator-view"),
        ("status -A", "viewer", "list deepcoderruns.deepcoder.dev in all namespaces", "deepcoder-operator-view"),
        ("suspend demo", "viewer", "patch deepcoderruns.deepcoder.dev in namespace", "deepcoder-operator-edit"),
        ("approve demo long", "viewer", "patch deepcoderruns.deepcoder.dev in namespace", "deepcoder-operator-edit"),
        ("logs demo samplers", "viewer", "list pods in namespace", "role view"),
    ],
)
def test_a_missing_right_is_named_with_the_role_that_grants_it(
    typed: Typed, command: str, user: str, right: str, role: str
) -> None:
    answer = typed(f"{command}", user)
    assert answer.returncode == 4, answer.stderr
    assert f"you lack the permission to {right}" in answer.stderr
    assert role in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_editor_has_what_the_messages_promise(typed: Typed) -> None:
    """Kubernetes' own role edit includes the chart's roles, pods and the Secret."""
    picture = said(typed("status demo", "editor"))
    assert "Complete" in picture
    assert "lack" not in picture


def test_stages_tell_attempts_and_results(typed: Typed) -> None:
    table = said(typed("stages demo", "viewer")).splitlines()
    assert table[0].split()[:4] == ["STAGE", "TYPE", "CONTEXT", "PHASE"]
    short = table[1].split()
    assert short[:5] == ["short", "Train", "64", "Complete", "20/20"]
    assert "eval/held-back/pass_at_1 0.5" in table[3]
    stages = yaml.safe_load(said(typed("stages demo -o yaml", "viewer")))
    assert [s["status"]["attempts"] for s in stages] == [2, 1, 1]


def test_bucket_is_read_with_the_secret_of_the_run_or_with_ones_own_credentials(typed: Typed) -> None:
    by_secret = said(typed("samples demo --steps", "editor"))
    assert by_secret.split()[2:] == ["short", "10", "short", "20", "long", "10"]
    assert said(typed("samples demo --steps", "viewer", **OWN)) == by_secret
    refused = typed("samples demo", "viewer", AWS_EC2_METADATA_DISABLED="true")
    assert refused.returncode == 6
    assert "set AWS_ACCESS_KEY_ID" in refused.stderr
    assert "you lack the permission to get secrets in namespace" in refused.stderr
    wrong = typed("samples demo", "viewer", **(OWN | {"AWS_SECRET_ACCESS_KEY": "wrong"}))
    assert wrong.returncode == 6
    assert "refuses your own credentials (AWS_ACCESS_KEY_ID)" in wrong.stderr


def test_samples_are_chosen_by_step_reward_and_verdict_and_printed_without_escapes(typed: Typed) -> None:
    rows = json.loads(said(typed("samples demo --stage short --step 20 --reward 1 -o json")))
    assert [(r["group_id"], r["index"], r["verdict"]) for r in rows] == [(0, 0, "passed"), (1, 0, "passed")]
    table = said(typed("samples demo --verdict wrong_answer --limit 3"))
    assert len(table.splitlines()) == 4
    full = said(typed("samples demo --reward 1 --full --limit 1"))
    assert "print(0)" in full
    assert "\\x1b[31m" in full
    assert "\x1b" not in full
    none = typed("samples demo --verdict time_limit")
    assert none.returncode == 3
    assert "wrong_answer 6, passed 2" in none.stderr


def test_past_attempts_and_their_logs_are_read_from_the_bucket(typed: Typed) -> None:
    table = said(typed("logs demo --attempts")).splitlines()
    assert [line.split()[0] for line in table[1:]] == ["1", "2", "3", "4"]
    assert "Crashed" in table[1]
    assert said(typed("logs demo --attempt 1")) == "attempt 1 began\nits last line\n"
    last = typed("logs demo --attempt 9")
    assert last.returncode == 3
    assert "has nothing of attempt 9" in last.stderr


def test_lineage_goes_to_the_root_and_verify_finds_a_changed_file(typed: Typed, played: PlayedRun) -> None:
    chain = json.loads(said(typed("lineage demo -o json")))
    assert [(link["stage"], link["step"]) for link in chain] == [("long", 10), ("short", 20)]
    assert said(typed("verify demo")).splitlines()[-1] == "whole"
    client = played.cluster.s3.client()
    key = f"{chain[0]['uri'].removeprefix(f's3://{s3_server.BUCKET}/')}/weights.bin"
    before = client.get_object(Bucket=s3_server.BUCKET, Key=key)["Body"].read()
    client.put_object(Bucket=s3_server.BUCKET, Key=key, Body=before[:-1] + b"?", ChecksumAlgorithm="SHA256")
    try:
        broken = said(typed("verify demo"), 1)
        assert "weights.bin has checksum" in broken
        assert said(typed("lineage demo"), 1) == ""
    finally:
        client.put_object(Bucket=s3_server.BUCKET, Key=key, Body=before, ChecksumAlgorithm="SHA256")


def test_cost_and_compare(typed: Typed) -> None:
    costs = json.loads(said(typed("cost demo --gpu-hour 2 -o json", "viewer")))
    assert costs["cost"]["amount"] == 0.0
    table = said(typed("compare demo demo"))
    assert table.startswith("the specs are the same")
    figures = dict(line.split("   ")[0::1][:2] for line in table.splitlines()[3:] if "   " in line)
    assert any(name.startswith("short: steps") for name in figures)


def test_a_held_stage_is_approved_and_a_run_suspended_and_resumed(typed: Typed, played: PlayedRun) -> None:
    s3 = {"bucket": s3_server.BUCKET, "endpoint": played.endpoint, "credentialsSecretRef": {"name": "s3"}}
    stages = [TRAIN | {"hold": True}, LONGER]
    manifest = run_manifest(played.namespace, "other", stages=stages, checkpoint={"s3": s3}, suspend=True)
    played.call(played.cluster.kube.create(manifest))
    wrong = typed("approve other short tall")
    assert wrong.returncode == 5
    assert "has no stage tall: its stages are short, long" in wrong.stderr
    assert "approved: short" in said(typed("approve other short"))
    assert stored(played, "other")["spec"]["approvedStages"] == ["short"]
    assert "resumed" in said(typed("resume other"))
    assert stored(played, "other")["spec"]["suspend"] is False
    assert "suspended" in said(typed("suspend other --wait --timeout 60"))
    assert stored(played, "other")["status"]["phase"] == "Suspended"


def test_a_run_that_is_over_cannot_be_suspended_and_that_is_said(typed: Typed) -> None:
    answer = typed("suspend demo --wait --timeout 60")
    assert answer.returncode == 1
    assert answer.stdout == "deepcoderrun/demo is Complete\n"
    assert "continues it with spec.from" in answer.stderr


def test_a_plan_needs_no_cluster_and_the_api_server_checks_it_on_request(
    typed: Typed, played: PlayedRun, tmp_path: Path
) -> None:
    bad = run_manifest(played.namespace, "planned", stages=[LONGER, TRAIN])
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(bad))
    said(typed(f"plan -f {path}", KUBECONFIG="/nowhere"))
    refused = typed(f"plan -f {path} --server")
    assert refused.returncode == 5
    assert "order the stages by context length" in refused.stderr
    assert typed("status planned").returncode == 3


def test_debug_bundle_has_what_is_there_without_secrets(typed: Typed, played: PlayedRun, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    said(typed(f"debug-bundle demo --file {path} --operator-namespace {played.namespace}"))
    assert stat.filemode(path.stat().st_mode) == "-rw-------"
    with tarfile.open(path) as archive:
        texts = {m.name.partition("/")[2]: archive.extractfile(m).read().decode() for m in archive}  # type: ignore[union-attr]
    assert {"run.yaml", "events.yaml", "REPORT.txt"} <= set(texts)
    assert any(re.fullmatch(r"attempts/\d{3}/exit\.json", name) for name in texts), "of attempts whose pods are gone"
    assert "StagePassed" in texts["events.yaml"]
    assert all(s3_server.SECRET not in text for text in texts.values())
    refused = typed(f"debug-bundle demo --file {path}", "viewer")
    assert refused.returncode == 0
    assert "lack the permission to list pods" in refused.stderr


def test_kubectl_completes_commands_options_and_names_of_runs(shell: Typed) -> None:
    words = said(shell("kubectl __complete deepcoder sta")).splitlines()
    assert [word.split("\t")[0] for word in words[:2]] == ["status", "stages"]
    assert said(shell("kubectl __complete deepcoder stages d", "viewer")).splitlines()[0] == "demo"
    assert "json" in said(shell("kubectl __complete deepcoder status -o ''")).split()
    assert said(shell("kubectl __complete deepcoder stages d", "stranger")).splitlines()[0] == ":4"


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_shells_get_a_script_that_asks_the_program(typed: Typed, shell: Typed, kind: str) -> None:
    script = said(typed(f"completion {kind}"))
    assert "_KUBECTL_DEEPCODER_COMPLETE" in script
    assert "kubectl-deepcoder" in script
    if kind == "bash":
        asked = "COMP_WORDS='kubectl-deepcoder sta' COMP_CWORD=1 _KUBECTL_DEEPCODER_COMPLETE=bash_complete"
        assert said(shell(f"bash -n <(kubectl deepcoder completion bash); {asked} kubectl-deepcoder")).split() == [
            "plain,status", "plain,stages"
        ]  # fmt: skip
