"""What vLLM's outputs become, and when an engine that is paused goes on. vLLM itself is not started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deepcoder_trainer.sampler.engine import generation_from
from deepcoder_trainer.types import Finish, SamplerLost


class Words:
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def output(reason: str | None) -> Any:
    """A finished request of two tokens."""
    completion = SimpleNamespace(
        token_ids=[5, 6],
        logprobs=SimpleNamespace(logprobs=[-1.0, -2.0], start_indices=[0, 1]),
        finish_reason=reason,
        weight_versions=None,
    )
    return SimpleNamespace(request_id="r", outputs=[completion], finished=True)


@pytest.mark.parametrize(("reason", "finish"), [("stop", Finish.STOP), ("length", Finish.LENGTH)])
def test_a_response_ends_by_itself_or_at_its_limit(reason: str, finish: Finish) -> None:
    generation = generation_from(output(reason), Words())
    assert (generation.finish, generation.text) == (finish, "5 6")


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_a_response_that_the_engine_cut_off_is_lost_and_not_finished(reason: str | None) -> None:
    with pytest.raises(SamplerLost, match=f"request r itself: {reason}"):
        generation_from(output(reason), Words())
