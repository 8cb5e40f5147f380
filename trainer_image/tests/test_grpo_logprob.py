"""The fused head against log_softmax, and packed attention against one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from deepcoder_trainer.grpo.attention import Segments, packed_attention
from deepcoder_trainer.grpo.logprob import linear_logprob


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple:
    log_p = torch.log_softmax(hidden.double() @ weight.double().T / temperature, -1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_values_and_gradients_equal_log_softmax_for_any_chunk(chunk: int, temperature: float) -> None:
    torch.manual_seed(chunk)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    up = torch.randn(2, 7, dtype=torch.float64)
    ours = linear_logprob(hidden, weight, targets, temperature, chunk)
    grads = torch.autograd.grad((ours[0] * up[0] + ours[1] * up[1]).sum(), (hidden, weight))
    reference = naive(hidden, weight, targets, temperature)
    expected = torch.autograd.grad((reference[0] * up[0] + reference[1] * up[1]).sum(), (hidden, weight))
    for a, b in zip((*ours, *grads), (*reference, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_pass_the_numerical_check() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 6, (4,))
    assert torch.autograd.gradcheck(lambda h, w: linear_logprob(h, w, targets, 0.7, 3), (hidden, weight))


def test_bfloat16_inputs_are_multiplied_in_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(200, 32).bfloat16()
    targets = torch.randint(0, 200, (64,))
    logprob, entropy = linear_logprob(hidden, weight, targets, 1.0)
    expected = naive(hidden, weight, targets, 1.0)
    assert logprob.dtype is torch.float32
    torch.testing.assert_close(logprob.double(), expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=0, atol=2e-5)


def test_no_position_at_all_still_gives_gradients() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)
    logprob, _ = linear_logprob(hidden, weight, torch.zeros(0, dtype=torch.long), 1.0)
    logprob.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_packed_attention_equals_attention_over_each_sequence_alone() -> None:
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
