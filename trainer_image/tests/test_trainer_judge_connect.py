"""A judge client as a stage config asks for it: how long it waits, and whose the work beside it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deepcoder_contracts.judge_time import submission_limit_s
from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint, StageConfig, StageType
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.connect import connect_judge
from deepcoder_trainer.problems.tests import policy_for


@pytest.fixture
def pool(tmp_path: Path) -> JudgeEndpoint:
    token = tmp_path / "token"
    token.write_text("t")
    return JudgeEndpoint(backend=JudgeBackend.POOL, host="localhost", port=1, token_file=str(token))


@pytest.mark.parametrize(
    ("stall_seconds", "patience", "longest"), [(1800, 900, 1440), (60, 30, 48), (7200, 1800, 5760)]
)
@pytest.mark.parametrize("stage_type", StageType)
async def test_a_submission_is_given_up_before_the_stage_counts_as_stalled(
    stall_seconds: int,
    patience: float,
    longest: float,
    stage_type: StageType,
    make_config: Callable[..., StageConfig],
    pool: JudgeEndpoint,
) -> None:
    """A stage without steps does not stall while it sends heartbeats."""
    config = make_config(judge=pool)
    more = {"stall_seconds": stall_seconds, "type": stage_type}
    config = config.model_copy(update={"stage": config.stage.model_copy(update=more)})
    async with connect_judge(config, None) as client:
        assert client.patience == patience
        assert client.longest == (longest if stage_type is StageType.TRAIN else math.inf)


async def test_two_programs_that_use_all_their_time_on_100_tests_are_judged_in_a_stage_with_default_settings(
    make_config: Callable[..., StageConfig], pool: JudgeEndpoint
) -> None:
    async with connect_judge(make_config(judge=pool), None) as client:
        assert 2 * submission_limit_s(policy_for("livecodebench").time_limit_s, 100) < client.longest


async def test_closing_the_client_leaves_the_work_beside_it_to_its_task(
    make_config: Callable[..., StageConfig], pool: JudgeEndpoint
) -> None:
    async with connect_judge(make_config(judge=pool), None) as client:
        task = asyncio.create_task(client.run())
        await asyncio.sleep(0.05)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "Together"}, "judge.together must be set for judge.backend Together"),
        ({"backend": "Local", "together": {"keyFile": "/k"}}, "and only then"),
        ({"backend": "Together", "together": {}}, "keyFile"),
        ({"backend": "Together", "together": {"keyFile": "/k", "endpoint": "http://api.together.ai/v1"}}, "endpoint"),
        ({"backend": "Together", "together": {"keyFile": "/k", "endpoint": "https://u:p@host/v1"}}, "endpoint"),
        ({"backend": "Together", "together": {"keyFile": "/k", "concurrency": 0}}, "concurrency"),
    ],
)
def test_a_back_end_has_what_it_needs_and_sends_no_key_in_the_clear(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeEndpoint.model_validate(settings)


@pytest.mark.parametrize("backend", ["Pool", "Together"])
async def test_a_secret_that_is_not_there_is_a_bad_config_and_names_its_setting(
    make_config: Callable[..., StageConfig], tmp_path: Path, backend: str
) -> None:
    missing = str(tmp_path / "missing")
    settings = {
        "Pool": {"backend": "Pool", "host": "localhost", "tokenFile": missing},
        "Together": {"backend": "Together", "together": {"keyFile": missing}},
    }[backend]
    field = {"Pool": "judge.tokenFile", "Together": "judge.together.keyFile"}[backend]
    with pytest.raises(BadConfig, match=rf"^{field} {missing} cannot be used: No such file") as refused:
        async with connect_judge(make_config(judge=JudgeEndpoint.model_validate(settings)), None):
            pass
    assert refused.value.field == field
