"""`cost`: one run or all, in a table and for programs, by the operator's prices or by given ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from deepcoder_cli.commands.cost import cost
from deepcoder_contracts.api.run import DeepCoderRun


def run_of(name: str, **usage: Any) -> DeepCoderRun:
    return DeepCoderRun.model_validate(
        {
            "metadata": {"namespace": "team", "name": name, "uid": name},
            "spec": {
                "model": {"uri": "/models/demo"},
                "dataset": {"uri": "/data/train.jsonl"},
                "stages": [{"name": "short", "contextTokens": 64, "maxSteps": 20}],
                "sandbox": {"template": {}},
                "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
            },
            "status": {"phase": "Complete", "usage": usage},
        }
    )


RUNS = {
    "a": run_of("a", gpuSeconds="36000", wastedGpuSeconds="1800", sandboxSeconds="5400", estimatedCost="1234.5"),
    "b": run_of("b", gpuSeconds="3600", estimated=True),
}


class Cluster:
    """Two runs; of all namespaces they are listed where that is asked for."""

    all_namespaces = True

    def client(self) -> Cluster:
        return self

    def get(self, name: str) -> DeepCoderRun:
        return RUNS[name]

    def list(self, *, all_namespaces: bool) -> list[DeepCoderRun]:
        return list(RUNS.values()) if all_namespaces else []


CLUSTER: Any = Cluster()


def test_a_table_has_a_row_for_each_run_and_a_dash_for_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    cost(CLUSTER, None, None, None, "table")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["NAMESPACE", "RUN", "PHASE", "GPUS"]
    assert [row.split() for row in rows] == [
        ["team", "a", "Complete", "0", "10.00", "0.50", "1.50", "1,234.50", "no"],
        ["team", "b", "Complete", "0", "1.00", "0.00", "0.00", "–", "yes"],
    ]


def test_programs_get_one_object_for_one_run_and_a_list_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    cost(CLUSTER, "b", None, 2.5, "json")
    one = json.loads(capsys.readouterr().out)
    assert (one["namespace"], one["run"], one["cost"]["gpu_hours"], one["cost"]["amount"]) == ("team", "b", 1, 2.5)
    cost(CLUSTER, None, None, None, "json")
    assert [each["run"] for each in json.loads(capsys.readouterr().out)] == ["a", "b"]


def test_prices_that_need_to_know_the_node_are_refused_unless_another_one_is_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A status does not say on which nodes pods ran: every run would cost nothing that is known."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("prices: [{nodeSelector: {gpu: h100}, perGpuHour: 3}]")
    with pytest.raises(click.UsageError, match="has no entry without a nodeSelector"):
        cost(CLUSTER, "b", prices, None, "json")
    cost(CLUSTER, "b", prices, 2.5, "json")
    assert json.loads(capsys.readouterr().out)["cost"]["amount"] == 2.5
