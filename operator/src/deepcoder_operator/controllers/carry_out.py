"""Carries out a plan's actions in order, up to the first that fails. Each action is safe to repeat.

A problem that a person must fix (an object that belongs to something else, a missing permission or quota, a webhook
that does not answer, a bucket that refuses) is returned as a `Problem`, which the next plan reports in the status.
Temporary errors raise: a conflict, an unavailable API server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run import FINALIZER, DeepCoderRun, Metadata
from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.manifest import ParentRef
from deepcoder_operator import metrics
from deepcoder_operator.builders.rayjob import build_rayjob, mounted_config_map
from deepcoder_operator.builders.run_objects import (
    CONFIG_FILE,
    build_config_map,
    build_network_policy,
    build_pool,
    build_service_account,
)
from deepcoder_operator.builders.settings import TrainerSettings
from deepcoder_operator.builders.stage_config import build_stage_config, build_stage_config_map
from deepcoder_operator.controllers.postmortem import PostMortem
from deepcoder_operator.domain.bounds import END_SECONDS
from deepcoder_operator.domain.draft import (
    Action,
    AddFinalizer,
    CreateAttempt,
    DeleteArtifacts,
    DeletePool,
    DeleteRayJob,
    DeleteRun,
    EndPods,
    EnsurePool,
    EnsureRunObjects,
    RemoveFinalizer,
    SavePostMortem,
)
from deepcoder_operator.domain.names import config_name
from deepcoder_operator.domain.owners import is_left_over, owned_by
from deepcoder_operator.domain.resolve import ResolvedConfig, resolve
from deepcoder_operator.domain.world import RAYJOB_INVALID, Problem
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.at_once import at_once
from deepcoder_operator.kube.client import Kube, Object, unless_changed
from deepcoder_operator.kube.events import Recorder
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.oversize import MOST_FINALIZERS
from deepcoder_operator.kube.resources import BY_KIND, CONFIGMAPS, PODS, POOLS, RAYJOBS, RUNS
from deepcoder_operator.storage.s3 import StorageProblem
from deepcoder_operator.storage.service import StorageService

log = logging.getLogger(__name__)


class CannotDo(Exception):
    """An action cannot be done until somebody fixes something. Carries the `Problem`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(reason, message)


_SEEN_TO = (CannotDo, StorageProblem, errors.Forbidden, errors.Invalid, errors.WebhookAway)
"""Errors that block an action until somebody fixes them."""


class Executor:
    """Carries out plans."""

    def __init__(
        self, kube: Kube, rayjobs: Informer, storage: StorageService, settings: TrainerSettings, record: Recorder
    ) -> None:
        """`settings` go into the objects of runs, and change with the operator's certificates."""
        self.settings = settings
        self._kube, self._rayjobs, self._storage, self._record = kube, rayjobs, storage, record
        self._post_mortem = PostMortem(kube, storage)

    async def carry_out(
        self, run: DeepCoderRun, actions: Iterable[Action], adopt: Callable[[Object], None]
    ) -> Problem | None:
        """Carry out the actions. Returns why one could not be done, or None. Raises `Conflict` and `Unavailable`.

        `adopt` receives the run if it was written here, so that the next plan need not wait for the event.
        """
        for action in actions:
            name = type(action).__name__
            try:
                written = await self._do(run, action)
            except _SEEN_TO as e:
                return replace(_problem(e, name), action=name)
            if written is not None:
                adopt(written)
            elif isinstance(action, AddFinalizer):
                return None  # the run is gone: nothing may be created for it
            metrics.ACTIONS.labels(action=name).inc()
        return None

    async def _do(self, run: DeepCoderRun, action: Action) -> Object | None:
        """Carry out one action. Returns the run if the action has written it."""
        meta = run.metadata
        match action:
            case AddFinalizer():
                return await self._finalizers(meta, lambda held: [*held, FINALIZER])
            case RemoveFinalizer():
                await self.release(meta)
            case EnsureRunObjects():
                await self._run_objects(run)
            case EnsurePool():
                pool = build_pool(run)
                if pool is not None:
                    await self._create(run, pool)
            case CreateAttempt(attempt):
                await self._attempt(run, attempt)
            case SavePostMortem(attempt):
                told = await self._post_mortem.save(run, attempt)
                if told is not None:
                    reason, message, warning = told
                    log.info("run %s/%s: %s: %s", meta.namespace, meta.name, reason, message)
                    self._record(_reference(run), reason, message, warning=warning)
                    if reason in metrics.WARNED_REASONS:
                        metrics.WARNINGS.labels(meta.namespace, reason).inc()
            case DeleteRayJob(name, uid):
                await self._end_job(run, name, uid)
            case EndPods(pods):
                for name, uid in pods:
                    await self._kube.delete(PODS, meta.namespace, name, uid=uid, grace_seconds=END_SECONDS)
            case DeletePool(name, uid):
                await self._kube.delete(POOLS, meta.namespace, name, uid=uid)
            case DeleteArtifacts():
                count = await self._storage.delete_folder(run)
                log.info("deleted %d objects of run %s/%s", count, meta.namespace, meta.name)
            case DeleteRun():
                await self._kube.delete(RUNS, meta.namespace, meta.name, uid=meta.uid)
        return None

    async def release(self, meta: Metadata) -> None:
        """Remove a run's finalizer. Its objects are garbage-collected."""
        await self._finalizers(meta, lambda held: [f for f in held if f != FINALIZER])

    async def _finalizers(self, meta: Metadata, change: Callable[[list[str]], list[str]]) -> Object | None:
        """Change a run's finalizers. Of very many, only some are cached, and the others must stay."""
        held = meta.finalizers
        try:
            if len(held) >= MOST_FINALIZERS:
                held = (await self._kube.get(RUNS, meta.namespace, meta.name))["metadata"].get("finalizers") or []
            patch = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": change(list(held))}}
            return await self._kube.patch(RUNS, meta.namespace, meta.name, patch)
        except errors.NotFound:
            return None

    async def _run_objects(self, run: DeepCoderRun) -> None:
        await self._storage.claim(run)
        policy = build_network_policy(run, self.settings)
        _, found = await at_once(self._create(run, obj) for obj in (build_service_account(run), policy))
        if found is not None:
            await self._kube.apply(unless_changed(policy, found))

    async def _attempt(self, run: DeepCoderRun, attempt: AttemptStatus) -> None:
        provenance = run.status.provenance
        if provenance is None:
            raise AssertionError("an attempt is intended only after acceptance")
        config, missing = await self._resolved(run, provenance.config_digest)
        credentials = await self._storage.credentials(run)
        stage = build_stage_config(run, attempt, config, provenance, self.settings)
        mounted = build_stage_config_map(run, stage, attempt.name, self.settings.ca_bundle)
        name = mounted["metadata"]["name"]
        ca, fixed_user = credentials.ca is not None, self.settings.fixed_user
        job = build_rayjob(run, attempt, provenance.image, name, s3_ca=ca, fixed_user=fixed_user)
        try:
            await at_once([self._create(run, mounted), *(self._keep(run, config_map) for config_map in missing)])
            created = await self._create_whole(run, job)
        except errors.AlreadyExists:
            return
        except errors.NotFound as e:
            text = f"RayJob {attempt.name} cannot be created: {e}: install KubeRay 1.6 or newer"
            raise CannotDo("KubeRayNotFound", text) from e
        except errors.Invalid as e:
            raise CannotDo(RAYJOB_INVALID, f"the API server refuses {attempt.name}: {e}") from e
        except errors.Forbidden as e:
            raise CannotDo("RayJobForbidden", f"the API server refuses {attempt.name}: {e}") from e
        self._rayjobs.observe(created)

    async def _create_whole(self, run: DeepCoderRun, job: Object) -> Object:
        """Create a RayJob and check that no field was dropped. CRDs before release 1.6, which an upgrade with Helm
        leaves in place, silently drop fields that we need, such as the token of Ray's dashboard, which runs any code.
        Dropped fields of the user's templates are reported, and the attempt continues without them."""
        try:
            return await self._kube.create(job, strict=True)
        except errors.UnknownFields as e:
            ours = [field for field in e.fields if ".template." not in field]
            if ours:
                text = f"RayJob {job['metadata']['name']} is not created: KubeRay's CRDs lack {', '.join(ours)}"
                fix = "upgrade KubeRay to 1.6 or newer, and its CRDs, which helm upgrade leaves as they are"
                raise CannotDo("KubeRayTooOld", f"{text}: {fix}") from e
            text = f"RayJob {job['metadata']['name']} is created without template fields that KubeRay's CRDs lack"
            self._record(_reference(run), "TemplateFieldsDropped", f"{text}: {', '.join(e.fields)}", warning=True)
            return await self._kube.create(job)

    async def _end_job(self, run: DeepCoderRun, name: str, uid: str) -> None:
        """Delete a RayJob and the ConfigMap that its head mounts. A run that is often preempted would otherwise fill
        its namespace's quota of ConfigMaps. A mounted file stays until its pod is gone.

        The ConfigMap goes first: only the RayJob says which one it is. If it cannot be deleted (the operator's role may
        be the cluster's own, and older), it stays until the run is deleted: no GPU is held for that.
        """
        namespace = run.metadata.namespace
        job = await self._kube.find(RAYJOBS, namespace, name)
        if job is None or job["metadata"]["uid"] != uid:
            return
        mounted = mounted_config_map(job)
        try:
            config = await self._kube.find(CONFIGMAPS, namespace, mounted) if mounted else None
            if config is not None and owned_by(config, run.metadata.uid):  # a job may be edited to mount another
                meta = config["metadata"]
                await self._kube.delete(CONFIGMAPS, namespace, meta["name"], uid=meta["uid"])
        except errors.KubeError as e:
            log.warning("run %s/%s: ConfigMap %s is left: %s", namespace, run.metadata.name, mounted, e)
        await self._kube.delete(RAYJOBS, namespace, name, uid=uid)

    async def _resolved(self, run: DeepCoderRun, digest: str) -> tuple[ResolvedConfig, list[Object]]:
        """Return the config as it was resolved when the run was accepted, never as this release would resolve it, and
        the ConfigMap that is to hold it, if it may be missing. The first attempt does not look for it."""
        meta, name = run.metadata, config_name(run.metadata.name)
        first = run.status.ordinal == 1
        stored = None if first else await self._kube.find(CONFIGMAPS, meta.namespace, name)
        if stored is None:
            fresh = build_config_map(run, resolve(run, _origin(run)))
            if _holds(fresh, digest):
                return ResolvedConfig.from_json(_text(fresh)), [fresh]
            if first:
                stored = await self._kube.find(CONFIGMAPS, meta.namespace, name)
        if stored is None or not _holds(stored, digest):
            raise _config_lost(name, gone=stored is None)
        return ResolvedConfig.from_json(_text(stored)), []

    async def _keep(self, run: DeepCoderRun, config_map: Object) -> None:
        """Create the ConfigMap with the resolved config, unless it exists with the same one."""
        found = await self._create(run, config_map)
        if found is not None and _text(found) != _text(config_map):
            raise _config_lost(config_map["metadata"]["name"], gone=False)

    async def _create(self, run: DeepCoderRun, obj: Object) -> Object | None:
        """Create an object unless it exists. Returns the existing one. Raises `CannotDo` if it is not the run's."""
        try:
            await self._kube.create(obj)
            return None
        except errors.AlreadyExists:
            meta = obj["metadata"]
            found = await self._kube.get(BY_KIND[obj["kind"]], meta["namespace"], meta["name"])
            if not owned_by(found, run.metadata.uid):
                if is_left_over(found, RUNS.kind, run.metadata.name):
                    text = f"{obj['kind']} {meta['name']} of the run that had this name before is still being removed"
                    raise CannotDo("StillEnding", text) from None
                text = f"{obj['kind']} {meta['name']} exists and is not this run's: delete it; it is never adopted"
                raise CannotDo("NameConflict", text) from None
            return found


def _text(config_map: Object) -> str:
    """Return the resolved config that a ConfigMap holds, or nothing."""
    return str((config_map.get("data") or {}).get(CONFIG_FILE, ""))


def _holds(config_map: Object, digest: str) -> bool:
    return sha256_digest(_text(config_map).encode()) == digest


def _config_lost(name: str, *, gone: bool) -> CannotDo:
    return CannotDo(
        "ConfigLost",
        f"ConfigMap {name}, with the config that the run was accepted with, "
        + ("is gone, and this release would resolve another" if gone else "was replaced by another")
        + ": restore it, or make a new run that continues with spec.from",
    )


def _problem(error: Exception, action: str) -> Problem:
    """Return the problem to report."""
    match error:
        case CannotDo() | StorageProblem():
            return error.problem
        case errors.WebhookAway():
            text = f"an admission webhook that must allow the action does not answer ({action})"
            return Problem("WebhookAway", f"{text}: {error}: check the webhook")
        case errors.Forbidden():
            return Problem("Forbidden", f"the API server forbids an action that the operator needs ({action}): {error}")
        case _:
            return Problem("Invalid", f"the API server refuses an object of the operator ({action}): {error}")


def _reference(run: DeepCoderRun) -> Object:
    """Return a reference to the run, for an event."""
    meta = run.metadata
    told = {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid, "resourceVersion": meta.resource_version}
    return {"apiVersion": RUNS.api_version, "kind": RUNS.kind, "metadata": told}


def _origin(run: DeepCoderRun) -> ParentRef | None:
    return run.status.provenance.from_ if run.status.provenance else None
