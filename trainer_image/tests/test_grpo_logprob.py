"""The fused head against log_softmax, and packed attention against one sequence at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lazy_modules import LazyModule

torch = LazyModule("torch")


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple:
    log_p = torch.log_softmax(hidden.double() @ weight.double().T / temperature, -1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("tile", [(1, 1), (3, 4), (7, 2), (2, 11), (64, 64)], ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("outputs", ["both", "log-probability alone", "entropy alone"])
def test_values_and_gradients_equal_log_softmax_for_any_tile(
    tile: tuple[int, int], temperature: float, outputs: str
) -> None:
    from deepcoder_trainer.grpo.logprob import linear_logprob

    torch.manual_seed(tile[0])
    hidden = (3 * torch.randn(7, 5, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    up = torch.randn(2, 7, dtype=torch.float64)
    wanted = {"both": [0, 1], "log-probability alone": [0], "entropy alone": [1]}[outputs]
    ours = linear_logprob(hidden, weight, targets, temperature, rows=tile[0], block=tile[1])
    grads = torch.autograd.grad(sum((ours[i] * up[i]).sum() for i in wanted), (hidden, weight))
    reference = naive(hidden, weight, targets, temperature)
    expected = torch.autograd.grad(sum((reference[i] * up[i]).sum() for i in wanted), (hidden, weight))
    for a, b in zip((*ours, *grads), (*reference, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_without_the_entropy_the_rest_is_the_same() -> None:
    from deepcoder_trainer.grpo.logprob import linear_logprob

    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(13, 4, requires_grad=True)
    targets = torch.randint(0, 13, (9,))
    results = []
    for entropy in (True, False):
        logprob, nats = linear_logprob(hidden, weight, targets, 0.6, entropy=entropy, rows=4, block=5)
        assert (nats is None) is not entropy
        results.append((logprob, *torch.autograd.grad(logprob.sum(), (hidden, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_logits_far_from_zero_lose_nothing() -> None:
    from deepcoder_trainer.grpo.logprob import linear_logprob

    hidden, weight = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3e4], [2.9999e4], [-3e4], [0.0]])
    targets = torch.tensor([1, 2])
    logprob, entropy = linear_logprob(hidden, weight, targets, 1.0, block=1)
    expected = naive(hidden, weight, targets, 1.0)
    torch.testing.assert_close(logprob.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=1e-6, atol=1e-6)


def test_gradients_pass_the_numerical_check() -> None:
    from deepcoder_trainer.grpo.logprob import linear_logprob

    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 6, (4,))
    assert torch.autograd.gradcheck(lambda h, w: linear_logprob(h, w, targets, 0.7, rows=3, block=4), (hidden, weight))


def live_bytes() -> Any:
    """Counts the bytes of storage that operators have made and that are still alive, and the most there ever were."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.live = self.peak = 0
            self.known: dict[int, Any] = {}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self._note(tensor.untyped_storage())
            return out

        def _note(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key in self.known:
                return

            def gone(_: Any) -> None:
                del self.known[key]
                self.live -= size

            self.known[key] = weakref.ref(storage, gone)
            self.live += size
            self.peak = max(self.peak, self.live)

    return LiveBytes()


def transient_bytes(head: Callable) -> int:
    """Most bytes beyond inputs and returned gradients; on the meta device, which has shapes and no values.

    Operands widened to float32 are counted, although CUDA does without.
    """
    with torch.device("meta"), torch.no_grad(), live_bytes() as count:
        hidden = torch.empty(32_768, 5120, dtype=torch.bfloat16)
        weight = torch.empty(152_064, 5120, dtype=torch.bfloat16)
        targets, up = torch.empty(32_768, dtype=torch.long), torch.empty(32_768)
        given = count.live
        gradients = head(hidden, weight, targets, up)
        return count.peak - given - sum(g.nbytes for g in gradients)


def tiles(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, up: torch.Tensor) -> tuple:
    """The head's two passes, one after the other."""
    from deepcoder_trainer.grpo.logprob import BLOCK, ROWS, _LinearLogprob

    saved = SimpleNamespace(set_materialize_grads=lambda _: None)
    saved.save_for_backward = lambda *tensors: setattr(saved, "saved_tensors", tensors)
    logprob, entropy = _LinearLogprob.forward(saved, hidden, weight, targets, 0.6, True, ROWS, BLOCK)
    del logprob, entropy
    return _LinearLogprob.backward(saved, up, None)[:2]


def all_logits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, up: torch.Tensor) -> tuple:
    """What autograd does with log_softmax((hidden @ weight.T).float() / temperature).gather(...)."""
    log_p = (hidden @ weight.T).float().div(0.6).log_softmax(-1)
    log_p.gather(-1, targets.unsqueeze(-1))
    g = torch.zeros_like(log_p).scatter_add_(-1, targets.unsqueeze(-1), up.unsqueeze(-1))
    g = torch.ops.aten._log_softmax_backward_data(g, log_p, -1, torch.float32)
    del log_p
    g = g.div(0.6).bfloat16()
    return g @ weight, g.T @ hidden


def test_it_takes_twenty_times_less_memory_than_all_logits() -> None:
    assert transient_bytes(all_logits) > 50 << 30
    assert transient_bytes(tiles) < transient_bytes(all_logits) / 20


def test_bfloat16_inputs_are_multiplied_in_float32() -> None:
    from deepcoder_trainer.grpo.logprob import linear_logprob

    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(200, 32).bfloat16()
    targets = torch.randint(0, 200, (64,))
    logprob, entropy = linear_logprob(hidden, weight, targets, 1.0)
    expected = naive(hidden, weight, targets, 1.0)
    assert logprob.dtype is torch.float32
    torch.testing.assert_close(logprob.double(), expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=0, atol=2e-5)


def test_no_position_at_all_still_gives_gradients() -> None:
    from deepcoder_trainer.grpo.logprob import linear_logprob

    hidden = torch.zeros(0, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)
    logprob, _ = linear_logprob(hidden, weight, torch.zeros(0, dtype=torch.long), 1.0)
    logprob.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_packed_attention_equals_attention_over_each_sequence_alone() -> None:
    from deepcoder_trainer.grpo.attention import Segments, packed_attention

    torch.manual_seed(0)
    lengths = [5, 1, 9, 2]
    q = torch.randn(1, 4, sum(lengths), 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, sum(lengths), 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    up = torch.randn(1, sum(lengths), 4, 8, dtype=torch.float64)
    packed, _ = packed_attention(torch.nn.Identity(), q, k, v, None, scaling=0.3, segments=Segments.of(offsets.numpy()))
    grads = torch.autograd.grad((packed * up).sum(), (q, k, v))
    alone = []
    for a, b in pairwise(offsets):
        heads = [x[0, :, a:b].repeat_interleave(4 // x.shape[1], 0) for x in (q, k, v)]
        scores = heads[0] @ heads[1].transpose(-1, -2) * 0.3
        future = torch.ones(b - a, b - a, dtype=torch.bool).triu(1)
        alone.append((scores.masked_fill(future, -torch.inf).softmax(-1) @ heads[2]).transpose(0, 1))
    reference = torch.cat(alone).unsqueeze(0)
    expected = torch.autograd.grad((reference * up).sum(), (q, k, v))
    for a, b in zip((packed, *grads), (reference, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("Qwen2", {}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Qwen3", {"head_dim": 8}),
        ("Llama", {"tie_word_embeddings": False}),
    ],
)
def test_log_probabilities_equal_those_of_the_model_in_transformers(
    architecture: str, overrides: dict, tiny_model: Callable[..., Path], make_batch: Callable, make_learner: Callable
) -> None:
    from transformers import AutoModelForCausalLM

    from deepcoder_trainer.grpo.pack import assemble, training_sequences

    directory = tiny_model(architecture, **overrides)
    learner = make_learner(model=directory)
    sequences = training_sequences(make_batch(longest=12).groups, learner.rank.recipe)[:6]
    packed = learner.rank.logprobs(assemble(sequences))
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    expected = []
    for s in sequences:
        with torch.no_grad():
            logits = reference(torch.tensor(s.input_ids[None].astype("int64"))).logits[0, s.prompt_tokens - 1 :]
        log_p = torch.log_softmax(logits / learner.rank.recipe.temperature, -1)
        expected.append(log_p.gather(-1, torch.tensor(s.targets[:, None].astype("int64"))).squeeze(-1))
    torch.testing.assert_close(torch.from_numpy(packed), torch.cat(expected), rtol=0, atol=1e-5)
