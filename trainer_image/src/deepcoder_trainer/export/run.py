"""One export from start to end: chain, files, the source's logits, the format, its logits, card, commit.

The result is loaded and compared before it is published. An export is not published if its logits are not finite, if it
differs more from its source than its number format explains, if llama.cpp does not load it, or if llama.cpp tokenizes
differently. Weights that bfloat16 represents badly are no obstacle: an export that differs much is compared a second
time, as at the end of a stage, and published if the source's weights, rounded, give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deepcoder_contracts.learner_memory import SHARD_BYTES
from deepcoder_contracts.manifest import ParentRef
from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.export import fp8, huggingface, prompts
from deepcoder_trainer.export.card import configuration_note, model_card
from deepcoder_trainer.export.compare import comes_of_rounding, difference, ruined
from deepcoder_trainer.export.errors import ExportFailed
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.export.forward import Layerwise
from deepcoder_trainer.export.publish import check_free, local_path, publish
from deepcoder_trainer.export.shards import Folder
from deepcoder_trainer.export.source import Place, agreed, evaluations, fetch, find
from deepcoder_trainer.export.tensors import (
    CheckpointTensors,
    PretrainedTensors,
    RoundedTensors,
    Tensors,
    in_dtype,
)
from deepcoder_trainer.export.workdir import workdir
from deepcoder_trainer.learner.model import COMPUTE_DTYPES
from deepcoder_trainer.modelcard import CARD, Difference, model_name
from deepcoder_trainer.modelconfig import read_model_config
from deepcoder_trainer.tokenizer import load_tokenizer

Logits = Callable[[int], Tensor]


@dataclass(frozen=True)
class Order:
    """A request for an export."""

    source: str
    """URI of a checkpoint, an export or a run's folder."""

    output: str
    """URI of the export."""

    form: Format = Format.HUGGINGFACE
    precision: Precision = Precision.BFLOAT16
    """Number format of the weights that are not quantized, in safetensors."""

    rope: int | None = None
    """Number of positions to reach by YaRN."""

    rope_original: int | None = None
    """Number of positions that the model was trained for, if config.json gives a larger one."""

    any_difference: bool = False
    """Publish the export however much it differs from its source."""

    shard_bytes: int = SHARD_BYTES
    name: str | None = None
    endpoint: str | None = None
    region: str | None = None
    sources: Sources = field(default_factory=Sources)


@dataclass(frozen=True)
class Done:
    """The result of an export."""

    ref: ParentRef
    """URI of the export, and its manifest's digest."""

    place: Place
    difference: Difference


@dataclass(frozen=True)
class _Model:
    """The source model, ready to be read."""

    name: str
    pretrained: Path
    tensors: Tensors
    config: dict[str, Any]
    """Its config.json with the export's changes."""

    entries: dict[str, Any]
    """The export's changes to config.json."""

    tokenizer: Any
    prompts: list[list[int]]


def export(order: Order, say: Callable[[str], None]) -> Done:
    """Make an export. Raises `BadConfig`, `ExportFailed`, `CheckpointDamaged`, `StorageError`; then nothing remains."""
    if order.form.quantization:
        from deepcoder_trainer.export.llamacpp import library

        library()  # before anything is downloaded
    check_free(order.output, order.endpoint, order.region)
    place = find(order.source, order.endpoint, order.region)
    say(f"{place.ref.uri}: a chain of {len(place.chain)} holds, lineage {place.ref.digest}")
    with workdir(local_path(order.output)) as work:
        model = _model(order, place, work)
        staging = work / "export"
        staging.mkdir()
        say(f"computing the source's logits on {len(model.prompts)} prompts")
        reference = Layerwise(model.pretrained, model.tensors)
        hidden = reference.hidden(model.prompts)
        say(f"writing {order.form.value}")
        lengths = [len(prompt) for prompt in model.prompts]
        with _written(order, model, staging, work) as logits:
            say("comparing the export's logits with the source's")
            found = difference(lambda i: reference.logits(hidden[i]), logits, lengths)
            if _refusal(order, found) and _may_be_rounding(order):
                say("this difference is large: checking whether it comes from rounding")
                rounded = Layerwise(model.pretrained, RoundedTensors(model.tensors, COMPUTE_DTYPES[order.precision]))
                states = rounded.hidden(model.prompts)
                alike = comes_of_rounding(lambda i: rounded.logits(states[i]), logits, lengths)
                found = replace(found, rounding=alike)
        if why := _refusal(order, found):
            raise ExportFailed(why)
        measured = evaluations(place, order.endpoint, order.region)
        card = model_card(model.name, place, order.form, order.precision.dtype, found, measured, model.entries)
        if isinstance(model.tensors, CheckpointTensors):
            card += "\n" + configuration_note(place.manifest, model.pretrained)
        (staging / CARD).write_text(card)
        ref = publish(staging, order.output, place, found.figures() | agreed(measured), order.endpoint, order.region)
    return Done(ref, place, found)


def _refusal(order: Order, found: Difference) -> str | None:
    """Return why an export with this difference is not published, or None."""
    # There is no bound for how much scaled positions change the logits of short prompts.
    if order.any_difference or order.rope is not None or found.rounding:
        return None
    if (why := ruined(order.form, found)) is None:
        return None
    return f"{why}; try another --format, or --any-difference to publish it with these figures in its card"


def _may_be_rounding(order: Order) -> bool:
    """Whether the format only rounds weights; quantization and llama.cpp's arithmetic do more."""
    return order.form is Format.HUGGINGFACE and order.precision is not Precision.FLOAT32


def _model(order: Order, place: Place, work: Path) -> _Model:
    fetched = fetch(place, order.sources, work)
    config = read_model_config(fetched.pretrained)
    if "quantization_config" in config:
        raise BadConfig(f"--source {order.source} is quantized: export from what it was made from", field="--source")
    entries = huggingface.positions(config, order.rope, order.rope_original)
    tensors: Tensors = (
        PretrainedTensors(Folder(fetched.pretrained))
        if fetched.shards is None
        else CheckpointTensors(Folder(fetched.shards))
    )
    tokenizer = load_tokenizer(fetched.pretrained)
    name = order.name or model_name(place.manifest)
    return _Model(name, fetched.pretrained, tensors, config | entries, entries, tokenizer, prompts.tokens(tokenizer))


@contextmanager
def _written(order: Order, model: _Model, staging: Path, work: Path) -> Iterator[Logits]:
    """Write the format below `staging`, load it, and yield a function from prompt i to its logits."""
    if order.form.quantization:
        with _gguf(model, staging, work, order.form.quantization) as logits:
            yield logits
        return
    dtype = COMPUTE_DTYPES[order.precision]
    is_fp8 = order.form is Format.FP8
    weights = fp8.quantized(model.tensors, dtype) if is_fp8 else in_dtype(model.tensors, dtype)
    entries = model.entries | ({"quantization_config": fp8.QUANTIZATION_CONFIG} if is_fp8 else {})
    huggingface.write(weights, model.pretrained, staging, order.precision, entries, order.shard_bytes)
    export = Layerwise(staging, PretrainedTensors(Folder(staging)), fp8.linear if is_fp8 else None)
    hidden = export.hidden(model.prompts)
    yield lambda i: export.logits(hidden[i])


@contextmanager
def _gguf(model: _Model, staging: Path, work: Path, quantization: str) -> Iterator[Logits]:
    from deepcoder_trainer.export.gguf_model import write_gguf
    from deepcoder_trainer.export.llamacpp import GGUFModel, quantize

    path = staging / f"{model.name}-{quantization}.gguf"
    if quantization == "F16":
        write_gguf(model.tensors, model.config, model.pretrained, path, model.name)
    else:
        whole = work / "f16.gguf"
        write_gguf(model.tensors, model.config, model.pretrained, whole, model.name)
        quantize(whole, path, quantization)
        whole.unlink()
    loaded = GGUFModel(path, prompts.MOST_TOKENS)
    try:
        for text in (*prompts.AWKWARD, *prompts.texts()):
            ours = list(model.tokenizer.encode(text, add_special_tokens=False))
            if loaded.tokens(text) != ours:
                raise ExportFailed(
                    f"llama.cpp splits {text!r} into other tokens than the model's own tokenizer: it would be served "
                    "with other input than it was trained with; export in another format than GGUF"
                )
        yield lambda i: loaded.logits(model.prompts[i])
    finally:
        loaded.close()
