"""The reference model of the KL penalty (`recipe.klCoefficient`): the model that training started with.

It is a second set of weights, sharded like the policy's and never trained, and is loaded only if the coefficient is
positive. It is the run's starting model in every stage, whatever checkpoint the policy continues from.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule

from deepcoder_contracts.recipe import Precision
from deepcoder_contracts.rope import RopeScaling
from deepcoder_trainer.learner.mesh import Meshes
from deepcoder_trainer.learner.model import PolicyModel, load_policy


def load_reference(
    directory: Path, device: torch.device, precision: Precision, meshes: Meshes, rope: RopeScaling | None = None
) -> PolicyModel:
    """Collective. Load the starting model, frozen."""
    reference = load_policy(directory, device, precision, meshes=meshes, rope=rope)
    return reference.requires_grad_(False).eval()


def give_back_memory(reference: PolicyModel) -> None:
    """Free the parameters that FSDP gathered for a forward pass; they are not needed until the next step."""
    if isinstance(reference, FSDPModule):
        reference.reshard()
