"""Carries out a plan's actions, in order, each safe to repeat. What fails raises and is planned again."""

from __future__ import annotations

import logging

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.manifest import ParentRef
from deepcoder_operator import metrics
from deepcoder_operator.api.attempt_status import AttemptStatus
from deepcoder_operator.api.run import FINALIZER, DeepCoderRun
from deepcoder_operator.builders.foundation import (
    CONFIG_FILE,
    build_config_map,
    build_network_policy,
    build_pool,
    build_service_account,
)
from deepcoder_operator.builders.rayjob import build_rayjob
from deepcoder_operator.builders.settings import TrainerSettings
from deepcoder_operator.builders.stage_config import build_stage_config, build_stage_config_map
from deepcoder_operator.controllers.observe import Observer, owned_by
from deepcoder_operator.domain.bounds import END_SECONDS
from deepcoder_operator.domain.draft import (
    Action,
    AddFinalizer,
    CreateAttempt,
    DeleteArtifacts,
    DeleteRayJob,
    DeleteRun,
    EndPods,
    EnsureFoundation,
    RemoveFinalizer,
)
from deepcoder_operator.domain.names import config_name
from deepcoder_operator.domain.resolve import ResolvedConfig, resolve
from deepcoder_operator.domain.world import Problem
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import BY_KIND, CONFIGMAPS, PODS, RAYJOBS, RUNS
from deepcoder_operator.storage.service import StorageService

log = logging.getLogger(__name__)


class Foreign(errors.KubeError):
    """An object under our name is not the run's: it is left alone."""


class Executor:
    """Does what plans say."""

    def __init__(self, kube: Kube, observer: Observer, storage: StorageService, settings: TrainerSettings) -> None:
        self._kube, self._observer, self._storage, self.settings = kube, observer, storage, settings

    async def carry_out(self, run: DeepCoderRun, action: Action) -> None:
        """Do one action. Raises `KubeError` or `StorageProblem`."""
        meta = run.metadata
        match action:
            case AddFinalizer():
                await self._finalizers(run, [*meta.finalizers, FINALIZER])
            case RemoveFinalizer():
                await self._finalizers(run, [f for f in meta.finalizers if f != FINALIZER])
            case EnsureFoundation():
                await self._foundation(run)
            case CreateAttempt(attempt):
                await self._attempt(run, attempt)
            case DeleteRayJob(name, uid):
                await self._kube.delete(RAYJOBS, meta.namespace, name, uid=uid)
            case EndPods(names):
                for pod in names:
                    await self._kube.delete(PODS, meta.namespace, pod, grace_seconds=END_SECONDS)
            case DeleteArtifacts():
                count = await self._storage.delete_folder(run)
                log.info("deleted %d objects of run %s/%s", count, meta.namespace, meta.name)
            case DeleteRun():
                await self._kube.delete(RUNS, meta.namespace, meta.name, uid=meta.uid)
        metrics.ACTIONS.labels(action=type(action).__name__).inc()

    async def _finalizers(self, run: DeepCoderRun, finalizers: list[str]) -> None:
        meta = run.metadata
        patch = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": finalizers}}
        try:
            await self._kube.patch(RUNS, meta.namespace, meta.name, patch)
        except errors.NotFound:
            return

    async def _foundation(self, run: DeepCoderRun) -> None:
        await self._create(run, build_config_map(run, resolve(run, _origin(run))))
        await self._create(run, build_service_account(run))
        policy = build_network_policy(run, self.settings)
        if not await self._create(run, policy):
            await self._kube.apply(policy)
        pool = build_pool(run)
        if pool is not None:
            await self._create(run, pool)

    async def _attempt(self, run: DeepCoderRun, attempt: AttemptStatus) -> None:
        provenance = run.status.provenance
        if provenance is None:
            raise AssertionError("an attempt is intended only after acceptance")
        config = await self._resolved(run)
        credentials = await self._storage.credentials(run)
        job = build_rayjob(run, attempt, provenance.image, s3_ca=credentials.ca is not None)
        stage = build_stage_config(run, attempt, config, provenance, self.settings)
        try:
            await self._create(run, build_stage_config_map(run, stage, attempt.name, self.settings.ca_bundle))
            created = await self._kube.create(job)
        except errors.AlreadyExists:
            return
        except (errors.Invalid, errors.Forbidden) as e:
            reason = "RayJobInvalid" if isinstance(e, errors.Invalid) else "RayJobForbidden"
            self._observer.refusals[run.metadata.uid] = Problem(reason, f"the API server refuses {attempt.name}: {e}")
            raise
        self._observer.refusals.pop(run.metadata.uid, None)
        self._observer.children.rayjobs.observe(created)

    async def _resolved(self, run: DeepCoderRun) -> ResolvedConfig:
        """The config as it was resolved when the run was accepted, never as this release would resolve it."""
        name, origin = config_name(run.metadata.name), _origin(run)
        stored = await self._kube.find(CONFIGMAPS, run.metadata.namespace, name)
        if stored is None:
            fresh = build_config_map(run, resolve(run, origin))
            text = fresh["data"][CONFIG_FILE]
        else:
            fresh, text = None, stored["data"].get(CONFIG_FILE, "")
        if run.status.provenance and sha256_digest(text.encode()) != run.status.provenance.config_digest:
            raise Foreign(f"ConfigMap {name} is not the one the run was accepted with: restore it, or make a new run")
        if fresh is not None:
            await self._create(run, fresh)
        return ResolvedConfig.from_json(text)

    async def _create(self, run: DeepCoderRun, obj: Object) -> bool:
        """Create unless it is there already; False if it was, raises `Foreign` if it is not the run's."""
        try:
            await self._kube.create(obj)
            return True
        except errors.AlreadyExists:
            meta = obj["metadata"]
            found = await self._kube.get(BY_KIND[obj["kind"]], meta["namespace"], meta["name"])
            if not owned_by(found, run.metadata.uid):
                raise Foreign(f"{obj['kind']} {meta['name']} exists and is not this run's") from None
            return False


def _origin(run: DeepCoderRun) -> ParentRef | None:
    return run.status.provenance.from_ if run.status.provenance else None
