"""The model card of an export that the command made: the content of every card (see `modelcard`), and what was checked.

That is the chain, the source's evaluations, the files that a checkpoint's export takes from the run's starting model,
and the difference between the logits of export and source. The lineage digest is the digest of the source's manifest.
That manifest contains its parent's digest, so `deepcoder-trainer verify` detects any change anywhere before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcoder_contracts.manifest import Manifest
from deepcoder_trainer.checkpoint.verify import Link
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.export.source import Measured, Place
from deepcoder_trainer.modelcard import (
    AS_WRITTEN,
    Difference,
    code,
    difference_table,
    evaluations,
    front_matter,
    provenance,
    rounding_note,
    table,
    trained_by,
    training_figures,
)
from deepcoder_trainer.modelconfig import model_files

_SHOWN_LINKS = 20

_FORMS = {
    Format.HUGGINGFACE: "Hugging Face layout: safetensors in {dtype}",
    Format.FP8: "compressed-tensors: linear layers in FP8 (E4M3, a scale for each output channel, activations "
    "quantized for each token), all else in {dtype}",
    Format.GGUF_F16: "GGUF, F16",
    Format.GGUF_Q8_0: "GGUF, Q8_0",
    Format.GGUF_Q4_K_M: "GGUF, Q4_K_M",
}


def model_card(
    name: str,
    place: Place,
    form: Format,
    dtype: str,
    found: Difference,
    measured: Sequence[Measured],
    rope: Mapping[str, Any],
) -> str:
    """Return the text of the card (README.md)."""
    manifest = place.manifest
    sections = [
        front_matter(manifest, "gguf" if form.quantization else "transformers", compared=True),
        f"# {name}\n",
        f"{_FORMS[form].format(dtype=dtype)}. {trained_by(manifest)}",
        "## Provenance\n",
        table(("", ""), provenance(manifest, place.ref)),
        "## Lineage\n",
        _lineage(place.chain),
        training_figures(manifest.metrics),
        _evaluations(evaluations(manifest.metrics), measured, changed=form is not Format.HUGGINGFACE or bool(rope)),
        "## Difference to the source\n",
        _difference(form, dtype, found),
    ]
    if rope:
        sections += ["## Positions\n", _positions(rope)]
    return "\n".join(section for section in sections if section)


def configuration_note(manifest: Manifest, pretrained: Path) -> str:
    """Return the card's note, for an export from a checkpoint, on the files taken from the run's starting model."""
    of = code(manifest.model or "an unknown model")
    when = (
        "as training read them: the checkpoint's manifest has their digests"
        if manifest.model_files
        else "on the day of this export; no manifest says what they were in training"
    )
    return (
        "## Configuration and tokenizer\n\n"
        f"The weights are the checkpoint's. Configuration and tokenizer are those of {of} {when}. The files:\n\n"
    ) + table(("", ""), [(f"`{name}`", f"`{digest}`") for name, digest in model_files(pretrained).items()])


def _lineage(chain: Iterable[Link]) -> str:
    links = list(chain)
    rows = [
        (link.manifest.kind.value, f"{link.manifest.stage} step {link.manifest.step}", f"`{link.digest}`")
        for link in links[:_SHOWN_LINKS]
        if link.manifest is not None
    ]
    more = f"\nand {len(links) - _SHOWN_LINKS} before them.\n" if len(links) > _SHOWN_LINKS else ""
    checked = f"{len(links)} manifests, each named by its child's digest, were checked before this export. "
    if (first := links[-1].manifest) is not None:
        run = code(f"{first.run.namespace}/{first.run.name} {first.run.uid}")
        checked += f"The first of them, which names no parent, is {first.stage} step {first.step} of run {run}.\n\n"
    return checked + table(("", "", "Digest of its manifest"), rows) + more


def _evaluations(within: Mapping[str, float], measured: Sequence[Measured], *, changed: bool) -> str:
    """Return each figure with how it was measured, because the same set at another length has the same figure names.

    `changed`: this export computes differently from the model that was measured.
    """
    rows = [
        (code(name), f"{value:.6g}", "from the source's manifest", "", "") for name, value in sorted(within.items())
    ]
    for each in measured:
        how = (f"`{each.key[:12]}`", f"{each.context_tokens}", f"{each.samples}")
        rows += [(code(name), f"{value:.6g}", *how) for name, value in sorted(each.figures.items())]
    if not rows:
        return ""
    of = (
        "The figures are the source's. This export computes differently; the difference is below.\n\n"
        if changed
        else ""
    )
    return (
        f"## Evaluation\n\n{of}{table(('', '', 'Evaluation', 'Response limit, tokens', 'Samples per problem'), rows)}"
    )


def _difference(form: Format, dtype: str, found: Difference) -> str:
    how = (
        "as llama.cpp computes them from this file"
        if form.quantization
        else "of the weights as written, computed in float32, activations quantized as vLLM does"
        if form is Format.FP8
        else AS_WRITTEN
    )
    return difference_table(how, found) + (f"\n{rounding_note('source', dtype)}\n" if found.rounding else "")


def _positions(rope: Mapping[str, Any]) -> str:
    parameters = rope["rope_parameters"]
    return (
        f"Rotary positions are scaled by YaRN, by {parameters['factor']:g} from "
        f"{parameters['original_max_position_embeddings']}, and reach {rope['max_position_embeddings']} tokens. The "
        "scaling is in effect at every length, short prompts included: it is part of the difference above.\n"
    )
