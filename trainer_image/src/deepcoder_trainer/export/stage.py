"""Compares the export at the end of a stage with its checkpoint, both read from storage.

This runs in the process of a learner rank, which has torch loaded and memory for a layer. The driver imports this
module only for its names, without torch. Neither model is on that machine's disk any more, and neither is downloaded:
tensors are read from storage by byte range, and the next ones are prefetched while a layer is computed. So the
comparison reads what others will download, and reads each model once: for 14.8 billion parameters 59 GB in float32 and
29.5 in bfloat16.

An export that differs much from the checkpoint is compared a second time. If the trained weights, rounded to the
export's number format, give the same result, then it is the model that samplers and learners used, however little that
format can represent. So weights that bfloat16 represents badly do not cost a run its export, and nobody has to choose a
bound for them. The second comparison is a separate call that reads both models again, because the caller must know that
an export differs much before the comparison may be cut off.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcoder_contracts.manifest import FileEntry
from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.export.errors import ExportFailed, FarOff
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.learner.rank_settings import LEARNER_DIR
from deepcoder_trainer.modelcard import Difference

if TYPE_CHECKING:
    from torch import Tensor

    from deepcoder_trainer.export.forward import Layerwise
    from deepcoder_trainer.export.shards import StoredFolder
    from deepcoder_trainer.export.tensors import PretrainedTensors, Tensors

READERS = 8
"""Tensors read from storage at once: a single connection to S3 would take minutes longer."""

PROGRESS_SECONDS = 30.0
"""Seconds between two log lines about progress."""

log = logging.getLogger(__name__)

_CONFIG = "config.json"
_ALONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
"""The files that loaders look for: a single file, or the index of several."""


@dataclass(frozen=True)
class StoredPair:
    """A checkpoint and its export, both in storage."""

    checkpoint: str
    """URI of its folder."""

    checkpoint_files: Sequence[FileEntry]
    export: str
    """URI of its folder."""

    export_files: Sequence[FileEntry]
    precision: Precision
    """Number format of the export."""
    endpoint: str | None
    region: str | None


def stored_difference(pair: StoredPair, model_dir: Path) -> Difference:
    """Compare their logits; `model_dir` holds the configuration and tokenizer of the model that training began with.

    Raises `ExportFailed` if the export cannot be loaded or is not the checkpoint's model, `FarOff` if only
    `stored_rounding` can decide that, `SourceBroken` if the checkpoint's logits are not finite, and errors of reading.
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
        indexed = _index(written, export)
    except (CheckpointDamaged, ObjectMissing) as error:
        raise ExportFailed(f"the export cannot be loaded: {error}") from error
    after = _shapes(export)
    _refuse_others(_shapes(source), after, "the export is not the model that it was made from")
    if unlike := _unlike(export.places(), indexed):
        raise ExportFailed(f"the export is not whole: {len(unlike)} of its weights are not where its index says")
    asked = prompts.tokens(load_tokenizer(model_dir))
    reference = Layerwise(model_dir, source, readers=READERS, told=_progress("the checkpoint"))
    loaded = _loaded(export, config)
    _refuse_others(loaded.shapes(), after, f"the export's {_CONFIG} asks for other weights than are there")
    of_source, of_export = _logits(reference, asked), _logits(loaded, asked)
    found = difference(of_source.__getitem__, of_export.__getitem__, [len(prompt) for prompt in asked])
    if (why := ruined(Format.HUGGINGFACE, found)) is None:
        return found
    if pair.precision is Precision.FLOAT32:  # nothing was rounded
        raise ExportFailed(why)
    raise FarOff(why, found)


def stored_rounding(pair: StoredPair, model_dir: Path) -> bool:
    """Whether the checkpoint's weights, rounded to the export's number format, give the export's logits.

    Call it after `stored_difference` raised `FarOff`. Raises errors of reading.
    """
    from deepcoder_trainer.export import prompts
    from deepcoder_trainer.export.compare import comes_of_rounding
    from deepcoder_trainer.export.forward import Layerwise
    from deepcoder_trainer.export.tensors import CheckpointTensors, PretrainedTensors, RoundedTensors
    from deepcoder_trainer.learner.model import COMPUTE_DTYPES
    from deepcoder_trainer.tokenizer import load_tokenizer

    trained = _folder(pair, f"{pair.checkpoint}/{LEARNER_DIR}", pair.checkpoint_files, f"{LEARNER_DIR}/")
    written = _folder(pair, pair.export, pair.export_files)
    asked = prompts.tokens(load_tokenizer(model_dir))
    told = _progress(f"the checkpoint in {pair.precision.dtype}")
    weights = RoundedTensors(CheckpointTensors(trained), COMPUTE_DTYPES[pair.precision])
    rounded = _logits(Layerwise(model_dir, weights, readers=READERS, told=told), asked)
    of_export = _logits(_loaded(PretrainedTensors(written), written.text(_CONFIG)), asked)
    return comes_of_rounding(rounded.__getitem__, of_export.__getitem__, [len(prompt) for prompt in asked])


def _loaded(export: Tensors, config: bytes) -> Layerwise:
    """Load the export with its own configuration. Raises `ExportFailed`."""
    from deepcoder_trainer.export.forward import Layerwise

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _CONFIG).write_bytes(config)
        try:
            return Layerwise(Path(folder), export, readers=READERS, told=_progress("the export"))
        except Exception as error:  # whatever transformers makes of this configuration, and not of the model's own
            said = str(error).partition("\n")[0]
            raise ExportFailed(f"the export cannot be loaded: {type(error).__name__}: {said}") from error


def _progress(whose: str) -> Callable[[int, int], None]:
    """Return a callback that logs, now and then, how many layers of a model are computed."""
    said = time.monotonic()

    def told(done: int, layers: int) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= PROGRESS_SECONDS:
            said = now
            log.info("logits of %s: %d of %d layers", whose, done, layers)

    return told


def _folder(pair: StoredPair, uri: str, files: Sequence[FileEntry], below: str = "") -> StoredFolder:
    from deepcoder_trainer.export.shards import StoredFolder

    sizes = {entry.path.removeprefix(below): entry.size for entry in files if entry.path.startswith(below)}
    return StoredFolder(open_storage(uri, pair.endpoint, pair.region), sizes)


def _index(written: StoredFolder, export: PretrainedTensors) -> Mapping[str, str]:
    """Return each weight's file, found as a loader would. Raises `CheckpointDamaged`."""
    places = export.places()
    if set(places.values()) == {_ALONE}:
        return places
    try:
        return dict(json.loads(written.text(_INDEX))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{_INDEX} cannot be read: {error!r}") from error


def _unlike(wanted: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def _shapes(model: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: model.shape(name) for name in model.names()}


def _refuse_others(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise if the export lacks a weight or has one of another shape, before anything is computed."""
    if different := _unlike(wanted, found):
        raise ExportFailed(
            f"{what}: {len(different)} of its weights are missing, left over or of another shape "
            f"({', '.join(different[:3])})"
        )


def _logits(model: Layerwise, asked: list[list[int]]) -> Sequence[Tensor]:
    """Return the logits of all prompts, so that the head is read once: 311 MB for 512 tokens and 152,000 entries."""
    import torch

    return model.logits(torch.cat(model.hidden(asked))).split([len(prompt) for prompt in asked])
