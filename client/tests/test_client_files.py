"""Runs and price lists read from files: a mistake is told by its field, and nothing is added to what was written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_client.errors import BadFile
from deepcoder_client.manifests import load, load_all, parse
from deepcoder_client.plan import read_model_config
from deepcoder_client.prices import Price, per_gpu_hour, price_list, read_prices
from deepcoder_contracts.api.run import MAX_NAME_LENGTH

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "deepcoder-1.5b.yaml").read_text().split("\n---\n")[0])
    return found


def test_what_is_applied_is_what_was_written_and_nothing_else() -> None:
    run = load(EXAMPLES / "deepcoder-14b.yaml")
    applied = run.to_object("team")
    (written,) = [
        d for d in yaml.safe_load_all((EXAMPLES / "deepcoder-14b.yaml").read_text()) if d["kind"] == "DeepCoderRun"
    ]
    assert applied["spec"] == written["spec"]
    assert applied["metadata"] == written["metadata"] | {"namespace": "team"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "Run"}, "kind is 'Run'"),
        ({"spec": {**document()["spec"], "stage": []}}, "spec.stage: there is no such field"),
        ({"metadata": {"name": "Upper"}}, "metadata.name is 'Upper'"),
        ({"metadata": {"name": "a" * (MAX_NAME_LENGTH + 1)}}, f"at most {MAX_NAME_LENGTH} characters"),
        (
            {"spec": {k: v for k, v in document()["spec"].items() if k != "checkpoint"}},
            "spec.checkpoint: Field required",
        ),
    ],
)
def test_a_mistake_is_told_by_its_field(change: dict[str, Any], told: str) -> None:
    with pytest.raises(BadFile, match=told.replace(".", r"\.")):
        parse(document() | change, "run.yaml")


def test_several_runs_in_a_file_are_told_apart_and_other_kinds_passed_over(tmp_path: Path) -> None:
    other = document() | {"metadata": {"name": "second"}}
    path = tmp_path / "runs.yaml"
    path.write_text(yaml.safe_dump_all([{"kind": "Secret", "apiVersion": "v1"}, document(), other]))
    assert [run.metadata.name for run in load_all(path)] == [document()["metadata"]["name"], "second"]
    with pytest.raises(BadFile, match=r"holds 2 runs .*second"):
        load(path)


ODD_VALUES = ["a: 2026-02-30", "a: 0b_", "a: !!bool maybe", "a: !!timestamp now", "a: " + "[" * 5000]


@pytest.mark.parametrize("content", ["spec: [", "- 1\n", "", *ODD_VALUES])
def test_what_is_no_run_is_said(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(BadFile, match=r"run\.yaml"):
        load(tmp_path / "run.yaml")
    with pytest.raises(BadFile, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_the_first_price_whose_nodes_match_counts(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("replicas: 2\nprices: [{nodeSelector: {gpu: h100}, perGpuHour: 3}, {perGpuHour: 1.5}]\n")
    prices = read_prices(path)
    assert per_gpu_hour(prices, {"gpu": "h100", "zone": "a"}) == 3
    assert per_gpu_hour(prices, {}) == 1.5
    assert per_gpu_hour([Price(per_gpu_hour=1, node_selector={"gpu": "h100"})], {}) is None


PRICELESS = ["prices: [{perGpuHour: -1}]", "prices: [{perGpuHour: .inf}]", "prices: 3", "- {price: 1}", "1\n---\n1"]


@pytest.mark.parametrize("content", PRICELESS)
def test_a_price_list_that_is_none_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(content)
    with pytest.raises(BadFile, match="perGpuHour"):
        read_prices(tmp_path / "prices.yaml")


def test_gpus_that_cost_nothing_have_a_price() -> None:
    assert price_list(None, 0.0) == [Price(per_gpu_hour=0.0)]
    assert price_list(None, None) == []


@pytest.mark.parametrize("content", ODD_VALUES)
def test_a_price_list_with_a_value_that_yaml_does_not_allow_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(content)
    with pytest.raises(BadFile, match=r"prices\.yaml"):
        read_prices(tmp_path / "prices.yaml")


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", "[" * 100_000, '{"num_attention_heads": [1]}', '{"num_attention_heads": 1e999}']
)
def test_a_models_configuration_that_is_none_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadFile, match=r"config\.json"):
        read_model_config(tmp_path / "config.json")
