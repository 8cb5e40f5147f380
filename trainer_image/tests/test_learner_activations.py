"""What a layer keeps for the backward pass changes memory and time, never the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.learner.group import plan_batch

torch = LazyModule("torch")

MODES = {
    "recomputed": {"keep_attention": False, "offload": False},
    "attention kept": {"keep_attention": True, "offload": False},
    "offloaded": {"keep_attention": False, "offload": True},
    "attention kept, offloaded": {"keep_attention": True, "offload": True},
}


def attention_runs(work: Callable[[], Any]) -> int:
    """Forward passes of attention, in whatever graph."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from deepcoder_trainer.learner.activations import ATTENTION

    class AttentionRuns(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func in ATTENTION
            return func(*args, **(kwargs or {}))

    with AttentionRuns() as runs:
        work()
    return runs.count


def once_each(learner: Any, step: Any) -> int:
    """Attention's forward passes in one pass over the micro-batches; a layer may need several for one row."""
    return attention_runs(lambda: [learner.logprobs(m) for m in step.micro_batches])


def gradient(learner: Any, step: Any) -> torch.Tensor:
    learner.policy.zero_grad()
    learner.accumulate(step, {})
    values = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in learner.policy.parameters()]
    return torch.cat([v.flatten() for v in values])


@pytest.mark.parametrize("precision", ["Float32", "BFloat16"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_the_gradient_is_the_same_to_the_bit(
    mode: dict[str, bool], precision: str, make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    from deepcoder_trainer.learner.activations import prepare

    recipe = make_recipe(optimizer_steps=1, precision=precision)
    [[step]] = plan_batch(make_batch(), recipe, 64, 1)
    learner = make_learner(recipe).rank
    expected = gradient(learner, step)
    prepare(learner.policy, **mode, small=0)
    assert torch.equal(gradient(learner, step), expected)
    assert torch.equal(gradient(learner, step), expected)
    assert expected.norm() > 0


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_attention_runs_once_a_layer_where_its_output_is_kept(
    mode: dict[str, bool], make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    from deepcoder_trainer.learner.activations import prepare

    recipe = make_recipe(optimizer_steps=1)
    [[step]] = plan_batch(make_batch(), recipe, 64, 1)
    learner = make_learner(recipe).rank
    once = once_each(learner, step)
    assert once >= len(learner.policy.model.layers) * len(step.micro_batches)
    prepare(learner.policy, **mode, small=0)
    assert attention_runs(lambda: learner.accumulate(step, {})) == once * (1 if mode["keep_attention"] else 2)


def saved_bytes(learner: Any, step: Any) -> int:
    """Bytes that the graph of the first micro-batch holds on the device between forward and backward pass."""
    held: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in learner.policy.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept_alive = learner._forward(step.micro_batches[0])
    assert kept_alive[0].requires_grad
    return sum(held.values())


def test_a_layer_keeps_its_input_alone_and_nothing_when_that_is_offloaded(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer.learner.activations import HostMemory, prepare

    made: list[HostMemory] = []
    original = HostMemory.clear
    monkeypatch.setattr(HostMemory, "clear", lambda self: (made.append(self), original(self))[1])
    recipe = make_recipe(optimizer_steps=1)
    [[step]] = plan_batch(make_batch(), recipe, 64, 1)
    tokens = len(step.micro_batches[0].input_ids)
    boundary = tokens * 32 * 4
    plain, recomputed, offloaded = (make_learner(recipe).rank for _ in range(3))
    prepare(recomputed.policy, keep_attention=False, offload=False)
    prepare(offloaded.policy, keep_attention=False, offload=True, small=0)
    layers = len(plain.policy.model.layers)
    assert saved_bytes(recomputed, step) < saved_bytes(plain, step) / 3
    assert saved_bytes(recomputed, step) - saved_bytes(offloaded, step) == layers * boundary
    assert sum(parked.host.nbytes for layer in made[-1]._layers for parked in layer.parked) == layers * boundary


def test_what_a_failed_pass_has_parked_is_dropped_by_the_next(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable
) -> None:
    from deepcoder_trainer.learner.activations import prepare

    recipe = make_recipe(optimizer_steps=1)
    [[step]] = plan_batch(make_batch(), recipe, 64, 1)
    learner = make_learner(recipe).rank
    expected = gradient(learner, step)
    prepare(learner.policy, keep_attention=True, offload=True, small=0)
    for _ in range(2):
        learner._forward(step.micro_batches[0])  # its backward pass never comes
    assert torch.equal(gradient(learner, step), expected)


@pytest.mark.parametrize(
    ("settings", "feed_forward"),
    [({}, 1), ({"recompute": True}, 2), ({"offload": True}, 2)],
    ids=str,
)
def test_a_policy_is_loaded_with_it(
    settings: dict[str, bool],
    feed_forward: int,
    make_recipe: Callable,
    make_batch: Callable,
    make_learner: Callable,
    tiny_model: Callable,
) -> None:
    from deepcoder_trainer.learner.model import load_policy

    recipe = make_recipe(optimizer_steps=1)
    [[step]] = plan_batch(make_batch(), recipe, 64, 1)
    learner = make_learner(recipe).rank
    expected = gradient(learner, step)
    learner.policy = load_policy(tiny_model(), torch.device("cpu"), Precision.FLOAT32, **settings)
    layers, calls = len(learner.policy.model.layers), []
    for layer in learner.policy.model.layers:
        # Before, not after: recomputation stops as soon as the last tensor that backward needs is there.
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    runs = attention_runs(lambda: gradients.append(gradient(learner, step)))
    assert torch.equal(gradients[0], expected)
    assert len(calls) == feed_forward * layers * len(step.micro_batches)
    assert runs == once_each(learner, step)


def test_no_gradient_no_copy(
    make_recipe: Callable, make_batch: Callable, make_learner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer.learner.activations import HostMemory, prepare

    recipe = make_recipe(optimizer_steps=1)
    [[step]] = plan_batch(make_batch(), recipe, 64, 1)
    learner = make_learner(recipe).rank
    expected = learner.logprobs(step.micro_batches[0])
    prepare(learner.policy, keep_attention=True, offload=True, small=0)
    parked = []
    monkeypatch.setattr(HostMemory, "park", lambda self, tensor: parked.append(tensor))
    assert (learner.logprobs(step.micro_batches[0]) == expected).all()
    assert not parked
