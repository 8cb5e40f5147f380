"""Measures how much an export's logits differ from its source's, for the model card and the manifest.

The source is computed layer by layer in float32 with its own config.json, and the export as it was written. So the
figures include everything that a number format, a conversion or scaled positions change. Over every position of the
prompts, the figures are the largest difference of a logit, the mean KL divergence of the next token's distribution (in
nats, of the export's from the source's), and how often both have the same most likely token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deepcoder_trainer.export.errors import ExportFailed, SourceBroken
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.modelcard import Difference

SAME_KL = 1e-6
"""Largest mean KL divergence (nats) of two models with equal weights and the same computation."""

SAME_LOGIT = 1e-4
"""Largest difference of a logit between two such models, as a share of the largest logit.

The mean divergence does not see a token that is never likely. Two such models give bit-identical logits, with any
number of threads. If a library adds in another order, this costs a few float32 roundings (6·10⁻⁸ each), far less than a
single bfloat16 rounding (4·10⁻³).
"""


def difference(source: Callable[[int], Tensor], export: Callable[[int], Tensor], lengths: Sequence[int]) -> Difference:
    """Compare two models, each given as a function from prompt i to logits [tokens, vocabulary], one prompt at a time.

    An export may have more rows than the source (vocabulary padding); these are left out. Raises `ExportFailed` if the
    export's logits are not finite, and `SourceBroken` if the source's are not.
    """
    largest, divergence, agreed, positions = 0.0, 0.0, 0, 0
    for i, length in enumerate(lengths):
        of_source = source(i).to(torch.float32)
        of_export = export(i).to(torch.float32)[:, : of_source.shape[1]]
        if not torch.isfinite(of_source).all():
            raise SourceBroken("the source's own logits are not finite: export an earlier checkpoint")
        if not torch.isfinite(of_export).all():
            raise ExportFailed("the export's logits are not finite: its number format does not hold these weights")
        largest = max(largest, float((of_source - of_export).abs().max()))
        before, after = of_source.log_softmax(-1), of_export.log_softmax(-1)
        divergence += float((before.exp() * (before - after)).sum())
        agreed += int((of_source.argmax(-1) == of_export.argmax(-1)).sum())
        positions += length
    return Difference(largest, max(divergence / positions, 0.0), agreed / positions, positions)


def comes_of_rounding(
    rounded: Callable[[int], Tensor], export: Callable[[int], Tensor], lengths: Sequence[int]
) -> bool:
    """Whether an export computes the same as its source's weights rounded to its number format; see `difference`."""
    largest = 0.0

    def seen(i: int) -> Tensor:
        nonlocal largest
        logits = rounded(i)
        largest = max(largest, float(logits.abs().max()))
        return logits

    found = difference(seen, export, lengths)
    return found.mean_kl <= SAME_KL and found.max_abs <= SAME_LOGIT * largest


def ruined(form: Format, found: Difference) -> str | None:
    """Return what is wrong if an export differs more from its source than its number format explains, else None."""
    if found.mean_kl <= form.most_kl:
        return None
    return (
        f"the export is not the model that it was made from: mean KL {found.mean_kl:.3g} nats (same likeliest token "
        f"{100 * found.top1:.2f} %), and {form.value} explains {form.most_kl:g} at most"
    )
