"""Which problem each group draws: a permutation of the problems for each epoch, computed from the group's number.

There is no iterator whose state would have to be saved: a run that resumes at group 4,711 draws the same problem there
as one that was never interrupted.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from deepcoder_trainer.seeds import seed as derive_seed


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return the order of all problems in one epoch: [count] indices, a function of (seed, epoch, count)."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "order", epoch)))
    permutation = generator.permutation(count)
    permutation.setflags(write=False)
    return permutation


def problem_index(seed: int, group_id: int, count: int) -> int:
    """Return the index, below `count`, of the problem of group `group_id` (from 0, over all stages).

    Raises ValueError if `count` is 0 or `group_id` is negative.
    """
    if count < 1:
        raise ValueError("there is no problem to draw: every problem of the dataset was left out, or it is empty")
    if group_id < 0:
        raise ValueError(f"group_id {group_id} is negative")
    epoch, position = divmod(group_id, count)
    return int(epoch_permutation(seed, epoch, count)[position])
