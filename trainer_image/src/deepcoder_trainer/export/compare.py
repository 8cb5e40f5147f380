"""How far an export's logits are from its source's, in figures for the model card and the manifest.

The source is computed layer by layer in float32, with the config.json that it came with; the export as it was written:
so what a number format, a conversion or scaled positions change is all in the figures. Over every position of the
prompts: the largest difference of a logit, the mean divergence of the next token's distribution (in nats, of the
export's from the source's), and how often both have the same likeliest token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcoder_trainer.export.errors import ExportFailed


@dataclass(frozen=True)
class Difference:
    """Between two models' logits."""

    max_abs: float
    """Largest difference of a logit."""

    mean_kl: float
    """Mean divergence KL(source ‖ export), in nats."""

    top1: float
    """Share of positions with the same likeliest token."""

    positions: int
    """How many were compared."""

    def figures(self) -> dict[str, float]:
        """For the manifest."""
        return {
            "export/logits_max_abs": self.max_abs,
            "export/logits_mean_kl": self.mean_kl,
            "export/top1_agreement": self.top1,
            "export/positions": float(self.positions),
        }


def difference(source: Callable[[int], Tensor], export: Callable[[int], Tensor], lengths: Sequence[int]) -> Difference:
    """Of two models, each given as its logits [tokens, vocabulary] of prompt i: one prompt's are held at a time.

    An export may have more rows than the source (padding of the vocabulary); they are left out. Raises `ExportFailed`
    for logits that are no numbers.
    """
    largest, divergence, agreed, positions = 0.0, 0.0, 0, 0
    for i, length in enumerate(lengths):
        of_source = source(i).to(torch.float32)
        of_export = export(i).to(torch.float32)[:, : of_source.shape[1]]
        if not torch.isfinite(of_export).all():
            raise ExportFailed("the export's logits are not finite: its number format does not hold these weights")
        largest = max(largest, float((of_source - of_export).abs().max()))
        before, after = of_source.log_softmax(-1), of_export.log_softmax(-1)
        divergence += float((before.exp() * (before - after)).sum())
        agreed += int((of_source.argmax(-1) == of_export.argmax(-1)).sum())
        positions += length
    return Difference(largest, max(divergence / positions, 0.0), agreed / positions, positions)
