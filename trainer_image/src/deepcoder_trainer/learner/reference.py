"""The model that training began with, for runs that are held near it (`recipe.klCoefficient`).

A second set of weights, sharded like the policy's and never trained: it is loaded only where the coefficient is
positive. It is the run's starting model in every stage, whatever checkpoint the policy goes on from.
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
    """Collective. The starting model, frozen."""
    reference = load_policy(directory, device, precision, meshes=meshes, rope=rope)
    return reference.requires_grad_(False).eval()


def give_back_memory(reference: PolicyModel) -> None:
    """After a pass: what was gathered for it, which nobody needs before the next step's."""
    if isinstance(reference, FSDPModule):
        reference.reshard()
