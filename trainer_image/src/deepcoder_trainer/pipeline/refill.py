"""`recipe.refill`: replaces a group whose rewards are all equal, which teaches nothing, by another draw for its slot.

Another problem is drawn for the same slot, at most `refillLimit` times; the last draw is kept in any case. Everything
follows from ids: which problem draw r of a slot is, the names of its samples, and so the seeds of its responses. In
strict order a batch thus remains a function of weights and group ids, whichever group finishes first, and a resumed run
that samples a slot again makes the same draws.

The price is less overlap: in strict order all draws of a batch are sampled with the batch's version, so the next
weights wait for verdicts, and not only for responses.
"""

from __future__ import annotations

from deepcoder_trainer.problems.draw_order import problem_index
from deepcoder_trainer.seeds import seed as derive_seed
from deepcoder_trainer.types import Group


def drawn_problem(run_seed: int, group_id: int, draw: int, limit: int, count: int) -> int:
    """Return the problem index, below `count`, of a slot's draw. Draw 0 follows the run's order, later ones another."""
    if draw == 0:
        return problem_index(run_seed, group_id, count)
    return problem_index(derive_seed(run_seed, "refill"), group_id * limit + draw - 1, count)


def teaches_nothing(group: Group) -> bool:
    """Whether all rewards are equal. False if a sample could not be judged."""
    rewards = {sample.outcome.reward for sample in group.samples}
    return len(rewards) == 1 and None not in rewards
