"""A manifest that somebody else wrote says what it likes, and the model card made of it stays the page that it is."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from export_world import manifest

from deepcoder_contracts.manifest import ManifestKind, ParentRef
from deepcoder_trainer.checkpoint.verify import Link
from deepcoder_trainer.export.card import model_card
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.export.source import Measured, Place
from deepcoder_trainer.modelcard import Difference, NotCompared, stage_card

HOSTILE = "base`</td><script>alert(1)</script>\n# Safe\n\n[click](javascript:alert(1)) | more"


def exports_card(figure: str = "held", **fields: object) -> str:
    """Of an export that was made by the command."""
    made = manifest(kind=ManifestKind.CHECKPOINT, **fields)
    uri = "s3://b/run/long/step-000002.a001"
    link = Link(uri, made.config_digest, made, pruned=False, problems=())
    place = Place(ParentRef(uri=uri, digest=made.config_digest), made, chain=(link,))
    found = Difference(max_abs=0.0, mean_kl=0.0, top1=1.0, positions=1)
    measured = Measured("0" * 64, 96, 4, {f"eval/{figure}/pass_at_1": 0.5})
    return model_card("name", place, Format.HUGGINGFACE, "bfloat16", found, [measured], {})


def stages_card(figure: str = "held", reason: str = "no time", **fields: object) -> str:
    """Of the export that a stage ends with."""
    made = manifest(kind=ManifestKind.CHECKPOINT, **fields)
    uri = "s3://b/run/long/step-000002.a001"
    figures = {f"eval/{figure}/x": 0.5}
    ref = ParentRef(uri=uri, digest=made.config_digest)
    return stage_card(made, ref, uri, figures, "bfloat16", NotCompared(reason))


both = pytest.mark.parametrize("card", [exports_card, stages_card])


@both
@pytest.mark.parametrize("field", ["model", "image", "image_id", "accelerator", "versions"])
def test_values_of_a_manifest_do_not_shape_the_model_card(field: str, card: Callable[..., str]) -> None:
    value = {HOSTILE: HOSTILE} if field == "versions" else HOSTILE
    plain, spoilt = (card(**{field: each}) for each in ({"torch": "2"} if field == "versions" else "plain", value))
    assert structure(spoilt) == structure(plain)
    shown = re.sub(r"`[^`\n]*`", "", page_of(spoilt))
    assert not re.search(r"<script|javascript:|# Safe", shown)


@both
def test_names_of_figures_do_not_shape_the_model_card(card: Callable[..., str]) -> None:
    assert structure(card(figure=HOSTILE)) == structure(card(figure="plain"))


def test_why_an_export_was_not_compared_does_not_shape_the_model_card() -> None:
    assert structure(stages_card(reason=HOSTILE)) == structure(stages_card(reason="plain"))


def page_of(card: str) -> str:
    """What comes after the front matter and the title."""
    return card.partition("\n# ")[2]


def structure(card: str) -> list[str]:
    """Headings, and the number of cells of each row."""
    lines = page_of(card).splitlines()
    cells = [str(len(re.findall(r"(?<!\\)\|", line))) for line in lines if line.startswith("|")]
    return [line for line in lines if line.startswith("#")] + cells
