"""A run's provenance, as it becomes known: the image from pods, the GPUs from reports, the rest from manifests.

Values of one attempt are not carried over to the next: the image of a head is forgotten when a new attempt is intended.
"""

from __future__ import annotations

from deepcoder_operator.domain.draft import Draft
from deepcoder_operator.domain.world import PodView, StoredStage

MAX_VERSIONS = 32
_LONGEST_VERSION = 256


def forget_attempt(draft: Draft) -> None:
    """Forget image and GPUs, which a new attempt has not reported yet."""
    _note(draft, image_id=None, accelerator=None)


def note_head(draft: Draft, head: PodView | None) -> None:
    """Record the live attempt's image as its node resolved it."""
    if head is not None and head.image_id:
        _note(draft, image_id=head.image_id)


def note_accelerator(draft: Draft, model: str | None) -> None:
    """Record the GPUs that the live attempt reports."""
    if model:
        _note(draft, accelerator=model)


def note_manifest(draft: Draft, stored: StoredStage) -> None:
    """Record what only manifests say about how a run's weights were made."""
    told = {
        "code_digest": stored.code_digest,
        "dataset_digest": stored.dataset_digest,
        "versions": {k: v[:_LONGEST_VERSION] for k, v in sorted((stored.versions or {}).items())[:MAX_VERSIONS]},
    }
    _note(draft, **{name: value for name, value in told.items() if value})


def _note(draft: Draft, **told: object) -> None:
    provenance = draft.status.provenance
    if provenance is not None and any(getattr(provenance, name) != value for name, value in told.items()):
        draft.update(provenance=provenance.model_copy(update=told))
