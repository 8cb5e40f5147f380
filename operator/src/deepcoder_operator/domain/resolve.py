"""The run's resolved config: everything that determines the result, with all defaults filled in, and its digest.

Stages are not part of it, because later ones may still change. Each attempt's stage is in its own ConfigMap and in the
manifests. The resolved bytes are kept in an immutable ConfigMap, so a release with other defaults does not change an
existing run, and a checkpoint of another config is never resumed.
"""

from __future__ import annotations

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.base import Digest, VersionedContract, sha256_digest
from deepcoder_contracts.layout import run_root
from deepcoder_contracts.manifest import ParentRef, RunIdentity
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import DatasetSource, ModelSource


class ResolvedConfig(VersionedContract):
    """What determines a run's result."""

    model: ModelSource
    """Starting weights."""

    dataset: DatasetSource | None = None
    """Training problems."""

    recipe: Recipe
    """All GRPO+ settings."""

    parent: ParentRef | None = None
    """Checkpoint of an earlier run that this one starts from."""

    @property
    def digest(self) -> Digest:
        """Digest of the stored bytes."""
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
    """Return the run's identity for manifests."""
    meta = run.metadata
    return RunIdentity(namespace=meta.namespace, name=meta.name, uid=meta.uid)


def storage_key(run: DeepCoderRun) -> str:
    """Return the key prefix of the run's folder within its bucket."""
    return run_root(run.spec.checkpoint.s3.prefix, identity(run))


def storage_uri(run: DeepCoderRun) -> str:
    """Return the URI of the run's folder."""
    return f"s3://{run.spec.checkpoint.s3.bucket}/{storage_key(run)}"
