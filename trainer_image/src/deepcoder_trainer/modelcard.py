"""The model card (README.md) of an exported model: the content of all cards, and the card of a stage's own export.

A card is made from a manifest alone, and what the manifest does not say is left out, so writing a card cannot fail. The
comparison of a stage's export with its checkpoint is passed in, or the reason why there is none, with the command that
makes it. Walking the chain reads whole models while GPUs are held, so it is left to commands: `deepcoder-trainer
verify`, and `export` for its own exports (see `export.card`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deepcoder_contracts.manifest import Manifest, ParentRef
from deepcoder_contracts.rope import RopeScaling

CARD = "README.md"
"""File name of a card, as the hub expects it."""

_TRAINING = ("reward_mean", "truncated_ratio", "response_tokens_mean", "entropy", "reference_kl")
_EVALUATION = "eval/"


@dataclass(frozen=True)
class Difference:
    """The difference between the logits of an export and of its source."""

    max_abs: float
    """Largest absolute difference of a logit."""

    mean_kl: float
    """Mean KL(source ‖ export) of the next token's distribution, in nats."""

    top1: float
    """Share of positions with the same most likely token."""

    positions: int
    """Number of compared positions."""

    rounding: bool = False
    """Whether the difference exceeds the format's bound, but rounding the source's weights alone explains it."""

    def figures(self) -> dict[str, float]:
        """Return the metrics for the manifest."""
        return {
            "export/logits_max_abs": self.max_abs,
            "export/logits_mean_kl": self.mean_kl,
            "export/top1_agreement": self.top1,
            "export/positions": float(self.positions),
            "export/rounding": float(self.rounding),
        }


@dataclass(frozen=True)
class NotCompared:
    """The logits of an export were not compared with its source's."""

    reason: str
    """The reason, for the card."""


def stage_card(
    source: Manifest,
    ref: ParentRef,
    folder: str,
    figures: Mapping[str, float],
    dtype: str,
    found: Difference | NotCompared,
    rope: RopeScaling | None = None,
) -> str:
    """Return the card of a stage's export in `folder`, made from the checkpoint `ref`, whose manifest is `source`.

    `found` is the difference from the checkpoint's logits, or why it is unknown. `rope` is the scaling of positions in
    training, which the export's config.json does not contain.
    """
    walk = code(f"deepcoder-trainer verify --deep {folder}")
    evaluated = [(code(name), f"{value:.6g}") for name, value in sorted(evaluations(figures).items())]
    sections = [
        front_matter(source, "transformers", compared=isinstance(found, Difference)),
        f"# {model_name(source)}\n",
        f"Hugging Face layout: safetensors in {dtype}. {trained_by(source)}",
        "## Provenance\n",
        table(("", ""), provenance(source, ref)),
        "## Lineage\n",
        "The lineage digest is that of the checkpoint's manifest, which names its parent's, and so on to the model "
        f"that the run began with. The chain was not verified for this card; {walk} verifies it.\n",
        training_figures(figures),
        f"## Evaluation\n\nFrom the checkpoint's manifest.\n\n{table(('', ''), evaluated)}" if evaluated else "",
        "## Difference to the source\n",
        _compared(found, dtype) if isinstance(found, Difference) else _not_compared(found, ref, dtype),
    ]
    if rope is not None:
        sections += [
            "## Positions\n",
            f"Trained with rotary positions scaled by {rope.type.value} by a factor of {rope.factor:g}; config.json "
            "has the model's original positions. Serve it with the same scaling: `deepcoder-trainer export --rope` "
            "makes an export that has it, and vLLM accepts it with `--hf-overrides`.\n",
        ]
    return "\n".join(section for section in sections if section)


def model_name(manifest: Manifest) -> str:
    """Return the default name of a model."""
    return f"{manifest.run.name}-{manifest.stage}-step-{manifest.step}"


def trained_by(manifest: Manifest) -> str:
    """Return the sentence that says how a model was trained, and by which run."""
    return (
        "Trained by reinforcement learning on programming problems (GRPO+), by run "
        f"`{manifest.run.namespace}/{manifest.run.name}`.\n"
    )


def front_matter(manifest: Manifest, library: str, *, compared: bool) -> str:
    """Return the card's metadata for the hub. `compared`: whether its logits were compared with its source's."""
    base = (manifest.model or "").partition("@")[0].removeprefix("hf://")
    lines = ["---", "pipeline_tag: text-generation", "tags: [reinforcement-learning, code]"]
    if (manifest.model or "").startswith("hf://"):
        lines.append(f"base_model: {json.dumps(base)}")
    lines += [f"library_name: {library}", f"logits_compared: {json.dumps(compared)}"]
    return "\n".join([*lines, "---", ""])


def provenance(source: Manifest, ref: ParentRef) -> list[tuple[str, str]]:
    """Return the rows of the provenance table, from the manifest of a model's source."""
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
    """Return the section with the last training metrics, empty if there are none."""
    shown = [(code(name), f"{value:.6g}") for name, value in sorted(figures.items()) if name in _TRAINING]
    return f"## At the end of training\n\n{table(('', ''), shown)}" if shown else ""


def evaluations(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of evaluations."""
    return {name: value for name, value in figures.items() if name.startswith(_EVALUATION)}


AS_WRITTEN = "of the weights and configuration as written, computed in float32"
"""The compared logits of an export that is not quantized, for its card."""


def difference_table(how: str, found: Difference) -> str:
    """Return the table of differences between an export's logits and its source's. `how` describes the logits."""
    rows = [
        ("Largest difference of a logit", f"{found.max_abs:.3g}"),
        ("Mean KL(source ‖ export), nats", f"{found.mean_kl:.3g}"),
        ("Same likeliest token", f"{100 * found.top1:.2f} %"),
        ("Positions compared", str(found.positions)),
    ]
    return f"Logits {how}, against the source's in float32, on a fixed set of prompts.\n\n" + table(("", ""), rows)


def rounding_note(source: str, dtype: str) -> str:
    """Return the note on an export that differs from its `source` by more than the bound, because of rounding alone."""
    same = f"the {source}'s weights in {dtype} compute the same as the export"
    return f"This difference is large, but all of it comes from rounding: {same}."


def _compared(found: Difference, dtype: str) -> str:
    trained = "Samplers and learners rounded in the same way in training, and evaluations measured that."
    rounding = f"\n{rounding_note('checkpoint', dtype)} {trained}\n" if found.rounding else ""
    return difference_table(AS_WRITTEN, found) + rounding


def _not_compared(found: NotCompared, ref: ParentRef, dtype: str) -> str:
    return (
        f"Not compared: {code(found.reason)}. The weights are the checkpoint's, as they were in training, written in "
        f"{dtype}, but their logits were not compared with the checkpoint's. "
        f"{code(f'deepcoder-trainer export --source {ref.uri} --output OUTPUT')} makes an export that is compared, and "
        "states the difference in its card.\n"
    )


def code(value: str) -> str:
    """Format a value as code in Markdown, escaped so that text of a manifest cannot change the page's layout."""
    shown = "".join(c if c.isprintable() else " " for c in value).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Format a table in Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
