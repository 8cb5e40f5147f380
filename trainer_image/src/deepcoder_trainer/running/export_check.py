"""Compares the export at the end of a stage with its checkpoint, and decides whether to deliver it.

GPUs are held meanwhile, so the comparison is bounded, and a stop ends it at once. An export that cannot be compared is
delivered anyway, with the reason in its card; `deepcoder-trainer export` can compare it later. An export that turns out
to be another model is not delivered: the attempt fails, as the command does, the checkpoint remains, and the next
attempt exports again. An export that differs much is delivered only if a second comparison shows that the difference is
rounding. If that comparison cannot be completed, or a stop comes first, nothing is delivered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from deepcoder_contracts.manifest import FileEntry
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.committed import CommittedCheckpoint
from deepcoder_trainer.checkpoint.errors import ExportRuined
from deepcoder_trainer.export.errors import ExportFailed, FarOff, SourceBroken
from deepcoder_trainer.export.stage import StoredPair, stored_difference, stored_rounding
from deepcoder_trainer.modelcard import Difference, NotCompared
from deepcoder_trainer.running.driverlog import without_secrets
from deepcoder_trainer.stopping import Moment, Stop, StopReached
from deepcoder_trainer.types import Learner

COMPARE_SECONDS = 900.0
"""Longest comparison at the end of a stage. A 14B model takes some minutes (docs/export.md)."""
_MOST_REASON = 300
"""Largest length of a reason in a card, in characters."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class Comparison:
    """Compares one attempt's export. `compare` is the `Compare` of a `StageExport`."""

    def __init__(self, config: StageConfig, stop: Stop, learner: Learner) -> None:
        self._config, self._stop, self._learner = config, stop, learner
        self.seconds = min(COMPARE_SECONDS, config.stage.stall_seconds / 2)
        """Deadline of both comparisons together, below `stallSeconds`, after which the attempt counts as stalled."""

    async def compare(
        self, checkpoint: CommittedCheckpoint, uri: str, files: Sequence[FileEntry]
    ) -> Difference | NotCompared:
        """See `exports.Compare`."""
        pair = self._pair(checkpoint, uri, files)
        size, began = sum(entry.size for entry in files) / 1e9, time.monotonic()
        log.info("comparing %s (%.3g GB) with %s, %g s at most", uri, size, checkpoint.ref.uri, self.seconds)
        try:
            found = await self._beside(partial(stored_difference, pair), began)
        except FarOff as far:
            found = await self._rounded(pair, far, began)
        except StopReached:
            return self._not_compared(uri, f"the attempt was asked to stop ({self._stop.reason})")
        except TimeoutError:
            return self._not_compared(uri, self._late())
        except SourceBroken as error:
            return self._not_compared(uri, str(error))
        except ExportFailed as error:
            raise ExportRuined(f"{uri} is not published: {error}; {checkpoint.ref.uri} is kept") from error
        except Exception as error:  # a stage that is trained and saved must not fail because of the comparison
            log.debug("%s was not compared", uri, exc_info=error)
            return self._not_compared(uri, f"{type(error).__name__}: {error}")
        finally:
            log.info("the comparison took %.1f s", time.monotonic() - began)
        log.info(
            "%s: logits differ from the checkpoint's by at most %.3g, mean KL %.3g nats, same likeliest token %.2f %%",
            *(uri, found.max_abs, found.mean_kl, 100 * found.top1),
        )
        if found.rounding:
            numbers = self._config.recipe.precision.value
            log.warning(
                "%s: this difference is large, but all of it comes from rounding to %s, as in training", uri, numbers
            )
        return found

    async def _rounded(self, pair: StoredPair, far: FarOff, began: float) -> Difference:
        """Return the difference if rounding alone explains it. Otherwise, or if unknown, raise `ExportRuined`."""
        log.info("%s: %s; checking whether rounding explains it", pair.export, far)
        why = str(far)
        try:
            if await self._beside(partial(stored_rounding, pair), began):
                return replace(far.found, rounding=True)
        except StopReached:
            raise
        except Exception as error:
            reason = self._late() if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            why += f"; it could not be determined whether that is rounding ({without_secrets(self._config, reason)})"
        raise ExportRuined(f"{pair.export} is not published: {why}; {pair.checkpoint} is kept") from far

    async def _beside(self, work: Callable[[Path], T], began: float) -> T:
        """Return the result of `work`. Raises `StopReached`, `TimeoutError` and the errors of `work`."""

        async def in_time() -> T:
            async with asyncio.timeout(began + self.seconds - time.monotonic()):
                return await self._learner.beside(work)

        return await self._stop.before(Moment.ASKED, in_time())

    def _late(self) -> str:
        return f"it was not done within {self.seconds:g} s"

    def _pair(self, checkpoint: CommittedCheckpoint, uri: str, files: Sequence[FileEntry]) -> StoredPair:
        storage = self._config.storage
        return StoredPair(
            checkpoint=checkpoint.ref.uri,
            checkpoint_files=tuple(checkpoint.manifest.files),
            export=uri,
            export_files=tuple(files),
            precision=self._config.recipe.precision,
            endpoint=storage.endpoint,
            region=storage.region,
        )

    def _not_compared(self, uri: str, reason: str) -> NotCompared:
        said = without_secrets(self._config, reason)[:_MOST_REASON]
        log.warning("%s is exported, and its logits were not compared with the checkpoint's: %s", uri, said)
        return NotCompared(said)
