"""Weights that are lost from the object store, which replacing a sampler cannot fix.

The error counts as a loss of the learner and not of the sampler. So the push fails at once, instead of replacing one
engine after another, each of which would fail to fetch the same weights.
"""

from __future__ import annotations

from deepcoder_trainer.errors import LearnerLost


class WeightsLost(LearnerLost):
    """No sampler can fetch the newest weights any more."""
