"""The export that a stage ends with, held to its checkpoint where both are stored.

Done in a learner rank's process, which has torch loaded and memory for a layer; the driver, which imports this module
for the names, does without. Nothing of the two models is on that machine's disk any more, and nothing is brought
there: tensors are asked of storage by ranges of bytes, the next ones while a layer is computed. So what is compared is
what others will fetch, and each model is read once: of 14.8 billion parameters 59 GB in float32 and 29.5 in bfloat16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcoder_contracts.manifest import FileEntry
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.export.errors import ExportFailed
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.learner.wire import LEARNER_DIR
from deepcoder_trainer.modelcard import Difference

if TYPE_CHECKING:
    from torch import Tensor

    from deepcoder_trainer.export.forward import Layerwise
    from deepcoder_trainer.export.shards import StoredFolder
    from deepcoder_trainer.export.tensors import Tensors

READERS = 8
"""Tensors on their way from storage at once: a single connection to S3 would take minutes longer."""

_CONFIG = "config.json"


@dataclass(frozen=True)
class StoredPair:
    """A checkpoint and what was exported of it, as storage has them."""

    checkpoint: str
    """URI of its folder."""

    checkpoint_files: Sequence[FileEntry]
    export: str
    """URI of its folder."""

    export_files: Sequence[FileEntry]
    endpoint: str | None
    region: str | None


def stored_difference(pair: StoredPair, model_dir: Path) -> Difference:
    """Between their logits; `model_dir` holds the configuration and tokenizer of the model that training began with.

    Raises `ExportFailed` for an export that is not the checkpoint's model, `SourceBroken` for a checkpoint that
    computes nothing, and what reading the two raises.
    """
    from deepcoder_trainer.export import prompts
    from deepcoder_trainer.export.compare import difference, ruined
    from deepcoder_trainer.export.forward import Layerwise
    from deepcoder_trainer.export.tensors import CheckpointTensors, PretrainedTensors
    from deepcoder_trainer.tokenizer import load_tokenizer

    trained = _folder(pair, f"{pair.checkpoint}/{LEARNER_DIR}", pair.checkpoint_files, f"{LEARNER_DIR}/")
    written = _folder(pair, pair.export, pair.export_files)
    source = CheckpointTensors(trained)
    try:
        export = PretrainedTensors(written)
        config = written.text(_CONFIG)
    except CheckpointDamaged as error:
        raise ExportFailed(f"the export cannot be loaded: {error}") from error
    _refuse_other_tensors(source, export)
    asked = prompts.tokens(load_tokenizer(model_dir))
    of_source = _logits(Layerwise(model_dir, source, readers=READERS), asked)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _CONFIG).write_bytes(config)
        of_export = _logits(Layerwise(Path(folder), export, readers=READERS), asked)
    found = difference(of_source.__getitem__, of_export.__getitem__, [len(prompt) for prompt in asked])
    if (why := ruined(Format.HUGGINGFACE, found)) is not None:
        raise ExportFailed(why)
    return found


def _folder(pair: StoredPair, uri: str, files: Sequence[FileEntry], below: str = "") -> StoredFolder:
    from deepcoder_trainer.export.shards import StoredFolder

    sizes = {entry.path.removeprefix(below): entry.size for entry in files if entry.path.startswith(below)}
    return StoredFolder(open_storage(uri, pair.endpoint, pair.region), sizes)


def _refuse_other_tensors(source: Tensors, export: Tensors) -> None:
    """An export that lacks a weight, or has one of another shape, need not be computed with."""
    before, after = ({name: model.shape(name) for name in model.names()} for model in (source, export))
    if different := sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n)):
        raise ExportFailed(
            f"the export is not the model that it was made from: {len(different)} of its weights are missing, left "
            f"over or of another shape ({', '.join(different[:3])})"
        )


def _logits(model: Layerwise, asked: list[list[int]]) -> Sequence[Tensor]:
    """Of all prompts at once, so that the head is read once: 311 MB of 512 tokens and a vocabulary of 152,000."""
    import torch

    return model.logits(torch.cat(model.hidden(asked))).split([len(prompt) for prompt in asked])
