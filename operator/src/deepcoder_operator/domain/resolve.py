"""The run's config, resolved once: what decides the result, with every default filled in, and its digest.

Stages are not part of it, since later ones may still change; each attempt's stage is in its own ConfigMap and in the
manifests. The bytes are kept in an immutable ConfigMap, so that a release with other defaults changes no run that
exists, and a checkpoint made with another config is never resumed.
"""

from __future__ import annotations

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.base import Digest, VersionedContract, sha256_digest
from deepcoder_contracts.layout import run_root
from deepcoder_contracts.manifest import ParentRef, RunIdentity
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import DatasetSource, ModelSource


class ResolvedConfig(VersionedContract):
    """What decides a run's result."""

    model: ModelSource
    """Starting weights."""

    dataset: DatasetSource | None = None
    """Training problems."""

    recipe: Recipe
    """GRPO+ settings, all of them."""

    parent: ParentRef | None = None
    """Checkpoint of an earlier run that this one starts from."""

    @property
    def digest(self) -> Digest:
        """Of the bytes as they are stored."""
        return sha256_digest(self.to_json())


def resolve(run: DeepCoderRun, origin: ParentRef | None) -> ResolvedConfig:
    """Resolve a run's spec with this release's defaults."""
    spec = run.spec
    return ResolvedConfig(
        model=ModelSource(uri=spec.model.uri, revision=spec.model.revision),
        dataset=DatasetSource(**{name: getattr(spec.dataset, name) for name in DatasetSource.model_fields})
        if spec.dataset
        else None,
        recipe=spec.recipe.model_copy(update={"old_logprobs": spec.recipe.resolved_old_logprobs}),
        parent=origin,
    )


def identity(run: DeepCoderRun) -> RunIdentity:
    """Who a run is, in manifests."""
    meta = run.metadata
    return RunIdentity(namespace=meta.namespace, name=meta.name, uid=meta.uid)


def storage_key(run: DeepCoderRun) -> str:
    """Key prefix of the run's folder within its bucket."""
    return run_root(run.spec.checkpoint.s3.prefix, identity(run))


def storage_uri(run: DeepCoderRun) -> str:
    """URI of the run's folder."""
    return f"s3://{run.spec.checkpoint.s3.bucket}/{storage_key(run)}"
