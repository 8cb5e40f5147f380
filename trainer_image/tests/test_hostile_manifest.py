"""A manifest that somebody else wrote says what it likes, and the model card made of it stays the page that it is."""

from __future__ import annotations

import re

import pytest
from export_world import manifest

from deepcoder_contracts.manifest import ManifestKind, ParentRef
from deepcoder_trainer.checkpoint.verify import Link
from deepcoder_trainer.export.card import model_card
from deepcoder_trainer.export.compare import Difference
from deepcoder_trainer.export.formats import Format
from deepcoder_trainer.export.source import Measured, Place

HOSTILE = "base`</td><script>alert(1)</script>\n# Safe\n\n[click](javascript:alert(1)) | more"


@pytest.mark.parametrize("field", ["model", "image", "image_id", "accelerator", "versions"])
def test_values_of_a_manifest_do_not_shape_the_model_card(field: str) -> None:
    value = {HOSTILE: HOSTILE} if field == "versions" else HOSTILE
    plain, spoilt = (card(**{field: each}) for each in ({"torch": "2"} if field == "versions" else "plain", value))
    assert structure(spoilt) == structure(plain)
    shown = re.sub(r"`[^`\n]*`", "", spoilt.partition("# name")[2])
    assert not re.search(r"<script|javascript:|# Safe", shown)


def test_names_of_figures_do_not_shape_the_model_card() -> None:
    assert structure(card(figure=HOSTILE)) == structure(card(figure="plain"))


def card(figure: str = "held", **fields: object) -> str:
    made = manifest(kind=ManifestKind.CHECKPOINT, **fields)
    uri = "s3://b/run/long/step-000002.a001"
    link = Link(uri, made.config_digest, made, pruned=False, problems=())
    place = Place(ParentRef(uri=uri, digest=made.config_digest), made, chain=(link,))
    found = Difference(max_abs=0.0, mean_kl=0.0, top1=1.0, positions=1)
    measured = Measured("0" * 64, 96, 4, {f"eval/{figure}/pass_at_1": 0.5})
    return model_card("name", place, Format.HUGGINGFACE, "bfloat16", found, [measured], {})


def structure(page: str) -> list[str]:
    """Headings, and the number of cells of each row."""
    lines = page.partition("# name")[2].splitlines()
    cells = [str(len(re.findall(r"(?<!\\)\|", line))) for line in lines if line.startswith("|")]
    return [line for line in lines if line.startswith("#")] + cells
