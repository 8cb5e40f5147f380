"""Compares an attempt's external inputs with those of earlier attempts of the run.

A URI says where an input is, not what it contains. A group refers to its problem, and so to the tests that judge its
stored responses again, by position among the usable problems; token ids depend on the tokenizer. If dataset or
tokenizer has changed, or if this release leaves out other problems or makes other prompts, the continued run would be
another run under the same name, so it is refused (`ConfigMismatch`, exit 64). A changed reward function is allowed,
because fixing it is how a run with a failed reward continues. The log reports the change, and each manifest records its
own digest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from deepcoder_contracts.manifest import Manifest
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.code import source_digest
from deepcoder_trainer.checkpoint.errors import ConfigMismatch

_IDLE = frozenset({"LICENSE"})
"""Files of a model that do not influence the result."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Digests of an attempt's external inputs."""

    dataset_digest: str | None = None
    """Digest of the training problems."""

    model_files: Mapping[str, str] = field(default_factory=dict)
    """Digests of the starting model's configuration and tokenizer, by file name."""

    reward_digest: str | None = None
    """Digest of the source of a custom reward function."""

    problems_digest: str | None = None
    """Digest of ids and prompts of the usable problems."""


def reward_digest(reward: str | None) -> str | None:
    """Return the digest of the source of `recipe.reward` (`module:function`); None without one or if unreadable."""
    if reward is None:
        return None
    try:
        return source_digest(reward.partition(":")[0])
    except (ImportError, OSError) as error:
        log.warning("the source of recipe.reward %s cannot be read, so manifests lack its digest: %s", reward, error)
        return None


def check_inputs(manifest: Manifest, config: StageConfig, inputs: Inputs, path: str) -> None:
    """Compare an attempt's inputs with those of the run's attempt that wrote `manifest`. Unknown values are ignored."""
    before, now = manifest.dataset_digest, inputs.dataset_digest
    if before and now and before != now:
        where = config.dataset.uri if config.dataset is not None and config.dataset.uri is not None else "the dataset"
        raise ConfigMismatch(
            f"{path} was trained on problems with digest {before}, {where} now holds others ({now}): a run "
            "continues only with its own problems; restore them (dataset.sha256 detects a change at once), or start a "
            "new run from this checkpoint (spec.from; by hand: parent)",
            field="dataset.uri",
        )
    files, here = manifest.model_files, inputs.model_files
    names = sorted(name for name in files.keys() | here.keys() if files.get(name) != here.get(name))
    if files and here and (changed := [name for name in names if name not in _IDLE]):
        raise ConfigMismatch(
            f"{path} was trained with another {', '.join(changed)} of {config.model.uri} than is there now: put it "
            "back (model.revision pins a hub's), or start a new run from this checkpoint (spec.from; by hand: parent)",
            field="model.uri",
        )
    before, now = manifest.problems_digest, inputs.problems_digest
    if before and now and before != now:
        raise ConfigMismatch(
            f"{path} was trained on other problems of the same dataset, or with other prompts, than this trainer makes "
            f"of it: use the image that wrote it ({manifest.image or 'not known'}), or start a new run from this "
            "checkpoint (spec.from; by hand: parent)",
            field="dataset",
        )
    if manifest.reward_digest and inputs.reward_digest and manifest.reward_digest != inputs.reward_digest:
        log.warning(
            "recipe.reward %s has another source than when %s was trained: what is trained from here on is rewarded by "
            "the one that is there now",
            config.recipe.reward,
            path,
        )
