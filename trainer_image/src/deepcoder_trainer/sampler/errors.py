"""The loss that no other sampler can mend: weights that are gone from the object store.

It is the learner's loss and not the sampler's, so that the push ends with it at once instead of replacing one engine
after another, each of which would fail to fetch the same weights.
"""

from __future__ import annotations

from deepcoder_trainer.errors import LearnerLost


class WeightsLost(LearnerLost):
    """The newest weights cannot be fetched by anybody any more."""
