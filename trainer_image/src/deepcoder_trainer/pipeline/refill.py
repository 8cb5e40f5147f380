"""`recipe.refill`: a group whose rewards are all equal teaches nothing, and its place in the batch is drawn anew.

Another problem is drawn for the same slot, at most `refillLimit` times; what the last draw brings stays. Everything is
a function of ids: which problem draw r of a slot is, what its samples are called, and so the seeds of its responses. A
batch in strict order stays a function of weights and group ids, whoever finishes first, and a slot that is sampled anew
by a resumed run goes the same way again.

It costs overlap. In strict order all draws of a batch are sampled with the batch's own version, so weights that follow
wait for verdicts, and not for responses alone.
"""

from __future__ import annotations

from deepcoder_trainer.problems.order import problem_index
from deepcoder_trainer.seeds import seed as derive_seed
from deepcoder_trainer.types import Group


def drawn_problem(run_seed: int, group_id: int, draw: int, limit: int, count: int) -> int:
    """Index among `count` problems of what a slot is drawn as: 0 is the run's own order, further draws have another."""
    if draw == 0:
        return problem_index(run_seed, group_id, count)
    return problem_index(derive_seed(run_seed, "refill"), group_id * limit + draw - 1, count)


def teaches_nothing(group: Group) -> bool:
    """Whether all rewards are equal. A group with a sample that no judge could judge is not known to be so."""
    rewards = {sample.outcome.reward for sample in group.samples}
    return len(rewards) == 1 and None not in rewards
