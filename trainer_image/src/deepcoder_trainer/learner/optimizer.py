"""AdamW with the recipe's settings. Its state exists before the first step, so a checkpoint can be loaded into it."""

from __future__ import annotations

import torch
from torch import nn

from deepcoder_contracts.recipe import Recipe

_EPSILON = 1e-8


def adamw(policy: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return the optimizer of a policy, with zero state."""
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=_EPSILON,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    # torch creates the state at the first step; loading a checkpoint needs it before.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def reset(optimizer: torch.optim.AdamW) -> None:
    """Set the optimizer's state to zero."""
    with torch.no_grad():
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
