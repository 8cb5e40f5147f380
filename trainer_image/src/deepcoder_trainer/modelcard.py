"""The model card, README.md of a model that leaves a run: what all cards say, and the card of a stage's own export.

A card is made of a manifest and asks nobody; what a manifest does not say is left out. So writing one cannot fail, and
the export that ends a stage has its card at no cost, while GPUs are held. Two things take reading whole models, and are
`deepcoder-trainer export`'s to do (see `export.card`): to walk the chain, and to compare logits. A card from here says
that neither was done, and by which command they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from deepcoder_contracts.manifest import Manifest, ParentRef
from deepcoder_contracts.rope import RopeScaling

CARD = "README.md"
"""What a card is called, where the hub and people look for it."""

_TRAINING = ("reward_mean", "truncated_ratio", "response_tokens_mean", "entropy", "reference_kl")
_EVALUATION = "eval/"


def stage_card(
    source: Manifest,
    ref: ParentRef,
    folder: str,
    figures: Mapping[str, float],
    dtype: str,
    rope: RopeScaling | None = None,
) -> str:
    """Of the export that a stage ends with, in `folder`: made from the checkpoint `ref`, whose manifest is `source`.

    `rope` is what the stage trained with, which config.json of its export does not say.
    """
    walk = code(f"deepcoder-trainer verify --deep {folder}")
    compare = code(f"deepcoder-trainer export --source {ref.uri} --output OUTPUT")
    evaluated = [(code(name), f"{value:.6g}") for name, value in sorted(evaluations(figures).items())]
    sections = [
        front_matter(source, "transformers", compared=False),
        f"# {model_name(source)}\n",
        f"Hugging Face layout: safetensors in {dtype}. {trained_by(source)}",
        "## Provenance\n",
        table(("", ""), provenance(source, ref)),
        "## Lineage\n",
        "The lineage digest is that of the checkpoint's manifest, which names its parent's, and so on to the model "
        f"that the run began with. That chain was not walked for this card: {walk} does it.\n",
        training_figures(figures),
        f"## Evaluation\n\nSaid by the checkpoint's manifest.\n\n{table(('', ''), evaluated)}" if evaluated else "",
        "## Difference to the source\n",
        f"Not compared. The weights are the checkpoint's as training held them, written in {dtype}; nobody has loaded "
        f"them and held their logits to the checkpoint's. {compare} makes an export of which that is done, with "
        "the difference in its card.\n",
    ]
    if rope is not None:
        sections += [
            "## Positions\n",
            f"Trained with rotary positions scaled by {rope.type.value}, {rope.factor:g} times as far; config.json has "
            "the model's own. Serve it with the same scaling: `deepcoder-trainer export --rope` makes one that has it, "
            "and vLLM can be told (`--hf-overrides`).\n",
        ]
    return "\n".join(section for section in sections if section)


def model_name(manifest: Manifest) -> str:
    """What a model is called where nobody has named it."""
    return f"{manifest.run.name}-{manifest.stage}-step-{manifest.step}"


def trained_by(manifest: Manifest) -> str:
    """By what, and by which run."""
    return (
        "Trained by reinforcement learning on programming problems (GRPO+), by run "
        f"`{manifest.run.namespace}/{manifest.run.name}`.\n"
    )


def front_matter(manifest: Manifest, library: str, *, compared: bool) -> str:
    """What the hub reads. `compared`: whether the model's logits were held to those of what it was made from."""
    base = (manifest.model or "").partition("@")[0].removeprefix("hf://")
    lines = ["---", "pipeline_tag: text-generation", "tags: [reinforcement-learning, code]"]
    if (manifest.model or "").startswith("hf://"):
        lines.append(f"base_model: {json.dumps(base)}")
    lines += [f"library_name: {library}", f"logits_compared: {json.dumps(compared)}"]
    return "\n".join([*lines, "---", ""])


def provenance(source: Manifest, ref: ParentRef) -> list[tuple[str, str]]:
    """Rows of a table: all that the manifest of what a model was made from says of its making."""
    rows: list[tuple[str, str | None]] = [
        ("Base model", source.model),
        ("Source", f"{ref.uri} ({source.kind.value})"),
        ("Lineage digest", ref.digest),
        ("Stage", f"{source.stage}, step {source.step} of the stage, {source.total_steps} in all"),
        ("Dataset digest", source.dataset_digest),
        ("Recipe digest", source.config_digest),
        ("Digest of the reward's source", source.reward_digest),
        ("Seed", str(source.seed)),
        ("Learner ranks", str(source.world_size)),
        ("Trainer's code digest", source.code_digest),
        ("Trainer image", source.image),
        ("Image digest", source.image_id),
        ("Accelerator", source.accelerator),
        ("Versions", ", ".join(f"{k} {v}" for k, v in sorted(source.versions.items())) or None),
        ("Source written", source.created_at.isoformat(timespec="seconds")),
    ]
    return [(key, code(value)) for key, value in rows if value]


def training_figures(figures: Mapping[str, float]) -> str:
    """The section of what training came to, empty where nothing of it is known."""
    shown = [(code(name), f"{value:.6g}") for name, value in sorted(figures.items()) if name in _TRAINING]
    return f"## At the end of training\n\n{table(('', ''), shown)}" if shown else ""


def evaluations(figures: Mapping[str, float]) -> dict[str, float]:
    """Those of them that an evaluation gave."""
    return {name: value for name, value in figures.items() if name.startswith(_EVALUATION)}


def code(value: str) -> str:
    """A value in a line or a cell of Markdown: what stands in a manifest must not shape the page."""
    shown = "".join(c if c.isprintable() else " " for c in value).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
