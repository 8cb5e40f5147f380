"""What a run has cost, up to a moment: settled totals, and pods that run."""

from datetime import UTC, datetime
from typing import Any

import pytest

from deepcoder_client.cost import cost
from deepcoder_client.prices import Price
from deepcoder_contracts.api.run import DeepCoderRun

NOW = datetime(2026, 1, 1, 2, tzinfo=UTC)


def run(**usage: Any) -> DeepCoderRun:
    return DeepCoderRun.model_validate(
        {
            "metadata": {"namespace": "team", "name": "demo", "uid": "u"},
            "spec": {
                "model": {"uri": "/models/demo"},
                "dataset": {"uri": "/data/train.jsonl"},
                "stages": [{"name": "short", "contextTokens": 64, "maxSteps": 20}],
                "sandbox": {"template": {}},
                "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
            },
            "status": {"usage": usage},
        }
    )


RUNNING = {"name": "a", "ordinal": 1, "gpus": 8, "scheduledTime": "2026-01-01T01:00:00Z", "perGpuHour": "2"}
ENDED = {**RUNNING, "name": "b", "gpus": 4, "endedTime": "2026-01-01T01:30:00Z"}


def test_pods_that_run_are_counted_until_now_and_those_that_ended_until_then() -> None:
    found = cost(run(gpuSeconds="7200", wastedGpuSeconds="3600", estimatedCost="4", pods=[RUNNING, ENDED]), NOW)
    assert found.gpu_hours == pytest.approx(2 + 8 + 2)
    assert found.wasted_gpu_hours == 1
    assert found.gpus == 8
    assert found.amount == pytest.approx(4 + 16 + 4)


def test_an_amount_that_lacks_pods_without_a_price_is_an_estimate() -> None:
    unpriced = {key: value for key, value in RUNNING.items() if key != "perGpuHour"} | {"name": "c"}
    assert not cost(run(pods=[RUNNING, unpriced | {"gpus": 0}]), NOW).estimated
    assert cost(run(estimated=True), NOW).estimated, "the end of a pod was not seen"
    found = cost(run(pods=[RUNNING, unpriced]), NOW)
    assert found.amount == pytest.approx(16)
    assert found.estimated


def test_without_a_price_list_there_is_no_amount_and_a_given_one_stands_in_for_the_operators() -> None:
    assert cost(run(gpuSeconds="3600"), NOW).amount is None
    assert cost(run(gpuSeconds="3600", estimatedCost="9"), NOW).amount == 9
    assert cost(run(gpuSeconds="3600", estimatedCost="9"), NOW, [Price(per_gpu_hour=3)]).amount == 3
    only_some = [Price(per_gpu_hour=3, node_selector={"gpu": "h100"})]
    assert cost(run(gpuSeconds="3600"), NOW, only_some).amount is None


def test_a_pod_that_was_scheduled_by_a_clock_ahead_of_this_one_costs_nothing_yet() -> None:
    found = cost(
        run(gpuSeconds="3600", estimatedCost="1", pods=[RUNNING | {"scheduledTime": "2026-01-01T03:00:00Z"}]), NOW
    )
    assert (found.gpu_hours, found.amount) == (1, 1)


def test_hours_of_judges_are_those_of_the_runs_own_pool() -> None:
    assert cost(run(sandboxSeconds="5400"), NOW).sandbox_hours == 1.5
