"""AdamW as the recipe has it, with its state there from the start."""

from __future__ import annotations

import torch
from torch import nn

from deepcoder_contracts.recipe import Recipe

_EPSILON = 1e-8


def adamw(policy: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """The optimizer of a policy."""
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=_EPSILON,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    # State exists from the start, not from the first step, so that loading always has somewhere to load into.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def reset(optimizer: torch.optim.AdamW) -> None:
    """Start its state from zero."""
    with torch.no_grad():
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
