"""`plan`: nothing is asked of a cluster, and what a run would take is said to people and to programs."""

import json
from pathlib import Path

import pytest
import yaml

from deepcoder_cli.__main__ import main

LARGE = str(Path(__file__).resolve().parents[2] / "examples/deepcoder-14b.yaml")


@pytest.fixture(autouse=True)
def without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")


def test_the_table_has_a_line_a_stage_and_says_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-f", LARGE, "--gpu-hour", "2.5", "--step-seconds", "16k=900"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("deepcoder-14b: hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-14B, 14.77 B parameters")
    assert [line.split()[0] for line in lines[2:5]] == ["16k", "32k", "eval-64k"]
    assert lines[2].split()[-3:] == ["80.00", "45.0", "3,600.00"]
    assert lines[3].split()[-2:] == ["–", "–"]
    assert "host memory of a stage's first learner, for the export at its end: 4.3 GB" in lines
    assert lines[-1].startswith("note: memory is estimated from sizes")


def test_programs_get_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-f", LARGE, "--gpu-hour", "2.5", "--step-seconds", "900", "-o", "json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)
    assert (made["gpus"], made["fits"], made["cost"]) == (32, True, None)
    assert made["stages"][0]["cost"] == 3600
    assert round(made["export_gb"], 1) == 4.3
    assert main(["plan", "-f", LARGE, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[0]["stages"][0]["per_hour"] is None


def test_what_does_not_fit_ends_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-f", LARGE, "--memory", "24"]) == 1
    assert "to change: a learner of stages[16k] needs" in capsys.readouterr().out


def test_a_malformed_template_is_wrong_usage_and_what_is_wrong_with_the_run_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(Path(LARGE).read_text())
    file = tmp_path / "run.yaml"
    document["spec"]["checkpoint"]["s3"].pop("credentialsSecretRef")
    file.write_text(yaml.safe_dump(document))
    assert main(["plan", "-f", str(file)]) == 1
    assert "to change: checkpoint.s3.credentialsSecretRef is not set" in capsys.readouterr().out
    document["spec"]["stages"][0]["resources"]["samplers"]["template"] = {"spec": {"containers": {"name": "a"}}}
    file.write_text(yaml.safe_dump(document))
    assert main(["plan", "-f", str(file)]) == 2
    assert "samplers.template.spec.containers must be a list" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-f", LARGE, "--step-seconds", "16k=fast"], "--step-seconds 16k=fast: give SECONDS, or STAGE=SECONDS"),
        (["-f", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
        (["-f", LARGE, "--prices", LARGE], "perGpuHour"),
        (["-f", LARGE, "--model-config", LARGE], "complete config.json"),
        (["-f", LARGE, "--memory", "0"], "--memory"),
        ([], "--filename"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_server_check_needs_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-f", LARGE, "--server"]) == 6
    assert "no usable kubeconfig" in capsys.readouterr().err
