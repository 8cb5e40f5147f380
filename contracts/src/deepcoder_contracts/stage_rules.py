"""The words of rules that a stage of a run and a stage of a run by hand have in common.

The CRD gives these messages as they are. A run by hand, and the operator for what CEL does not see, put the stage and
the metric in front.
"""

from __future__ import annotations

from collections.abc import Sequence

UNMEASURED = (
    "promoteWhen uses an evaluation that the stage does not run: add the dataset to evaluate.datasets (with contests, "
    "for a rating), or use another metric"
)
MEASURED_ONCE = "an Evaluate stage measures once: gate it on eval/<dataset>/pass_at_1 or rating with window 1"
TARGETS_OF_TRAIN = "evaluate.targets is for Evaluate stages; a Train stage evaluates its own weights: remove it"


def unknown_targets(targets: Sequence[str], earlier: Sequence[str]) -> str | None:
    """Return what is wrong with the targets of an Evaluate stage, or None. `earlier` are the Train stages before it."""
    known = ["Base", *earlier]
    unknown = [target for target in targets if target not in known]
    if not unknown:
        return None
    return f"evaluate.targets names {', '.join(unknown)}, which is not an earlier Train stage: use {', '.join(known)}"
