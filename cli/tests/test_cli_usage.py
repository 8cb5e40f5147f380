"""What is typed wrongly is told before anything is asked of a cluster, and nothing that is given is ignored."""

from __future__ import annotations

import io
import os
import shlex
from pathlib import Path

import pytest
import yaml

from deepcoder_cli.__main__ import main

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"


@pytest.fixture(autouse=True)
def nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubeconfig as it should be, of a server that refuses every connection."""
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))


ONE_RUN = ("status", "stages", "logs", "samples", "lineage", "verify", "approve", "suspend", "resume", "cost",
           "debug-bundle")  # fmt: skip


@pytest.mark.parametrize("name", ["", "demo/status", "..", "Demo", "demo?x=1"])
@pytest.mark.parametrize("command", ONE_RUN)
def test_what_can_be_no_name_is_refused(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty shell variable names no run; taken into an address it would name the list of all."""
    assert main([*command.split(), name]) == 2
    assert "is not the name of an object" in capsys.readouterr().err


def test_a_namespace_is_a_name_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-n", "team/deepcoderruns"]) == 2
    assert "'team/deepcoderruns' is not the name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("compare demo/ demo", "'' is not the name of an object"),
        ("compare a/b/c demo", "'a/b' is not the name of an object"),
        ("status demo -A", "-A covers all runs"),
        ("cost demo -A", "-A covers all runs"),
        ("status --request-timeout nan", "not a finite number"),
        ("status --request-timeout inf", "--request-timeout"),
        ("status demo --watch --timeout nan", "not a finite number"),
        ("status demo --watch --timeout=-1", "--timeout"),
        ("suspend demo --wait --timeout inf", "not a finite number"),
        ("cost --gpu-hour nan", "not a finite number"),
        ("logs demo judge --attempt 1", "pods of judge are gone"),
        ("logs demo samplers --attempts", "pods of samplers are gone"),
        ("logs demo --attempts --attempt 1", "leave out one of the two"),
        ("logs demo --file events.json", "--attempt N"),
        ("logs demo -o json", "-o is for --attempts"),
        ("debug-bundle demo --file /nowhere/bundle.tar.gz", "name a file in an existing folder"),
        ("debug-bundle demo --file /tmp", "name a file in an existing folder"),
        (f"plan -f {DEMO} --step-seconds tall=5", "there is no stage tall: name one of short, long, eval"),
        (f"plan -f {DEMO} --step-seconds=-5", "give SECONDS, or STAGE=SECONDS"),
        (f"plan -f {DEMO} --step-seconds nan", "give SECONDS, or STAGE=SECONDS"),
        (f"plan -f {DEMO} --memory nan", "not a finite number"),
    ],
)
def test_what_would_be_ignored_or_means_nothing_is_told(
    command: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(command)) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_terminal_that_lacks_letters_is_given_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), "latin-1", write_through=True)
    monkeypatch.setattr("sys.stdout", out)
    assert main(["plan", "-f", str(DEMO)]) == 0
    out.seek(0)
    assert " ? " in out.read(), "a dash stands for what is unknown"


def test_a_plan_is_made_of_what_another_program_writes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.write(writer, DEMO.read_bytes())
    os.close(writer)
    kept = os.dup(0)
    os.dup2(reader, 0)
    try:
        assert main(["plan", "-f", "-"]) == 0
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reader)
    assert capfd.readouterr().out.startswith("demo: ")


def test_one_price_stands_in_for_what_a_list_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("prices: [{nodeSelector: {gpu: h100}, perGpuHour: 3}]")
    large = DEMO.with_name("deepcoder-14b.yaml")
    command = ["plan", "-f", str(large), "--prices", str(prices), "--gpu-hour", "2"]
    assert main(command) == 0
    assert " 64.00 " in capsys.readouterr().out
    assert main(["cost", "--prices", str(prices)]) == 2
    assert "no entry without a nodeSelector" in capsys.readouterr().err
    assert main(["cost", "--prices", str(prices), "--gpu-hour", "2"]) == 6, "nobody answers"
