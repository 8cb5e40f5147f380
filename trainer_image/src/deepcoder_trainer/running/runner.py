"""From a config to an exit code: one attempt of one stage, or a whole local run, stage after stage."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_contracts.layout import CLAIM, EXIT, MANIFEST, RUN, exit_key, parse_evaluation_dir
from deepcoder_contracts.manifest import Manifest, ParentRef, RunRecord
from deepcoder_contracts.stage import StageConfig, StageType, Storage
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, ObjectMissing, StorageDenied
from deepcoder_trainer.checkpoint.listing import StageListing, read_listing
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.sources import on_disk
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.cluster import most_of
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.localrun import LocalRun, held_by_gate, late_refusals
from deepcoder_trainer.protocols import Observer
from deepcoder_trainer.rollout.reward import load_reward
from deepcoder_trainer.running import process_exit
from deepcoder_trainer.running.attempt import Attempt
from deepcoder_trainer.running.drain import Driver
from deepcoder_trainer.stopping import Moment, Stop, stop_on_signals

log = logging.getLogger(__name__)

OVERTIME_SECONDS = 3.0
"""Time for the interpreter to end after a stop's deadline. A pod has 5 s."""

_OF_NO_STEP = {RUN, CLAIM, EXIT}
"""Names of the objects of a run whose attempts were all refused before they created anything."""

CLOSING_SECONDS = 5.0
"""Upper bound of a stop's time for the interpreter to end, when everything is stored and reported."""

UNHURRIED_SECONDS = 60.0
"""The same time without a stop. Ray's shutdown takes a third of it on a busy machine."""

MakeObservers = Callable[[StageConfig], tuple[Observer, ...]]


async def run(config: StageConfig | LocalRun, judge: LocalJudge | None, observers: MakeObservers) -> ExitRecord:
    """Run an attempt or a local run to its end, or until a stop is requested. Then the process has a time limit."""
    stop = Stop()
    seconds = config.storage.drain_seconds
    stop_on_signals(stop, seconds)
    record: ExitRecord | None = None
    try:
        with Driver() as driver:
            asking = asyncio.create_task(driver.watch(stop, seconds))
            try:
                if isinstance(config, StageConfig):
                    record = await Attempt(config, stop, judge, observers(config)).run()
                else:
                    record = await _run_stages(config, stop, judge, observers)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
    finally:
        process_exit.bound(seconds_to_end(stop), record.code if record else None)
    return record


def seconds_to_end(stop: Stop) -> float:
    """Return the time limit for the process to end when everything else is done.

    Without it, threads that hang in a put or a download would outlast the grace period of the pod, and Ray's shutdown
    would outlast the patience of a user who pressed Ctrl-C.
    """
    if not stop.requested:
        return UNHURRIED_SECONDS
    return min(stop.seconds_left(Moment.LEFT), CLOSING_SECONDS) + OVERTIME_SECONDS


async def _run_stages(
    run_config: LocalRun, stop: Stop, judge: LocalJudge | None, observers: MakeObservers
) -> ExitRecord:
    store = open_run_storage(run_config.storage)
    await asyncio.to_thread(check_storage, run_config.storage, store)
    check_beginning(run_config, store)  # in this thread, because it imports a custom reward function
    parent = run_config.parent
    machine = most_of(each.resources for each in run_config.stages)
    record = ExitRecord(code=ExitCode.DONE, reason="Completed", message="every stage was done before")
    for index, stage in enumerate(run_config.stages):
        listing = read_listing(await asyncio.to_thread(store.list, f"{stage.name}/"))
        train = stage.type is StageType.TRAIN
        ended = await asyncio.to_thread(_ended, store, listing) if train else None
        if not train and await asyncio.to_thread(_evaluated, store, stage.name, listing):
            log.info("stage %s was done before", stage.name)
        elif ended is None or not _exported(listing, ended[0]):
            ordinal = max(listing.claims, default=0) + 1
            log.info("stage %s (%d of %d), attempt %d", stage.name, index + 1, len(run_config.stages), ordinal)
            config = run_config.stage_config(index, ordinal, parent)
            begins = index == 0 and not listing.committed
            later = [run_config.stage_config(i, 1, None) for i in range(1, len(run_config.stages))] if begins else []
            record = await Attempt(config, stop, judge, observers(config), machine, later).run()
            if record.code != ExitCode.DONE:
                return record
            listing = read_listing(await asyncio.to_thread(store.list, f"{stage.name}/"))
            ended = await asyncio.to_thread(_ended, store, listing) if train else None
        else:
            log.info("stage %s was done before, at step %d", stage.name, ended[0].step)
        values: Mapping[str, float] = {}
        if ended is not None:
            parent = ended[1]
            values = ended[0].gate.values if ended[0].gate else {}
        elif stage.promote_when is not None:
            values = await asyncio.to_thread(_measured, store, stage.name)
        if (held := held_by_gate(stage, values)) is not None:
            return ExitRecord(
                code=1,
                reason="GateUnmet",
                message=f"stage {stage.name} ended with its gate unmet and promoteWhen.otherwise {held.value}",
                step=ended[0].step if ended is not None else 0,
            )
    return record


def check_storage(storage: Storage, store: ObjectStore) -> None:
    """Raise `BadConfig` if a local run's storage cannot be listed, or is a folder that cannot be written."""
    try:
        if storage.uri.startswith("file:"):
            folder = Path(urlsplit(storage.uri).path)
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        store.list("attempts/")
    except (OSError, StorageDenied) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadConfig(
            f"storage.uri {storage.uri} cannot be used ({why}): name a folder, or a bucket and credentials, that may "
            "be read and written",
            field="storage.uri",
        ) from error


def check_beginning(run_config: LocalRun, store: ObjectStore) -> None:
    """Check, before a run begins, that everything its file names exists, for all stages. Raises `BadConfig`.

    If storage has only refused attempts so far, the current configuration replaces the earlier one: a first try that
    was refused, for example for a wrong path, must not bind the second to the same mistake.
    """
    try:
        found = RunRecord.from_json(store.get_bytes(RUN))
    except ObjectMissing:
        _check_named(run_config)
        return
    digest = run_config.config_digest
    if found.run != run_config.identity or found.config_digest == digest:
        return
    if all(PurePosixPath(each.key).name in _OF_NO_STEP for each in store.list("")):
        _check_named(run_config)
        log.info("%s holds no results of its earlier configuration, so the current one replaces it", store.uri)
        store.put_bytes(RUN, found.model_copy(update={"config_digest": digest}).to_json())


def _check_named(run_config: LocalRun) -> None:
    if refusals := list(late_refusals(run_config)):
        raise BadConfig("\n".join(refusal.message for refusal in refusals), field=refusals[0].field)
    named = [("model.uri", run_config.model.uri)]
    if run_config.dataset is not None and run_config.dataset.uri is not None:
        named.append(("dataset.uri", run_config.dataset.uri))
    named += [
        (f"stages[{stage.name}].evaluate.datasets[{each.name}].{what}", uri)
        for stage in run_config.stages
        for each in (stage.evaluate.datasets if stage.evaluate else ())
        for what, uri in (("uri", each.uri), ("contests", each.contests))
        if uri is not None
    ]
    for field, uri in named:
        if urlsplit(uri).scheme in ("", "file"):
            on_disk(uri, field)
    if run_config.recipe.reward is not None:
        load_reward(run_config.recipe.reward)


def _ended(store: ObjectStore, listing: StageListing) -> tuple[Manifest, ParentRef] | None:
    """Return the checkpoint that ended a stage, or None."""
    for checkpoint in listing.candidates():
        try:
            manifest, digest = read_manifest(store, checkpoint.path)
        except (CheckpointDamaged, ObjectMissing) as error:
            log.warning("%s is not used: %s", checkpoint.path, error)
            continue
        if manifest.final:
            return manifest, ParentRef(uri=f"{store.uri}/{checkpoint.path}", digest=digest)
    return None


def _exported(listing: StageListing, manifest: Manifest) -> bool:
    return any(export.step == manifest.step for export in listing.exports())


def _measured(store: ObjectStore, stage: str) -> dict[str, float]:
    """Return the figures of an Evaluate stage, those of its newest evaluation if it made several."""
    found: list[Manifest] = []
    for each in store.list("eval/"):
        folder = each.key.removesuffix(f"/{MANIFEST}")
        if folder != each.key and parse_evaluation_dir(folder) is not None:
            try:
                found.append(read_manifest(store, folder)[0])
            except (CheckpointDamaged, ObjectMissing) as error:
                log.warning("%s is not used: %s", folder, error)
    figures: dict[str, float] = {}
    for manifest in sorted(found, key=lambda m: (m.ordinal, m.created_at)):
        if manifest.stage == stage:
            figures |= manifest.metrics
    return figures


def _evaluated(store: ObjectStore, stage: str, listing: StageListing) -> bool:
    for ordinal in listing.claims:
        try:
            if ExitRecord.from_json(store.get_bytes(exit_key(stage, ordinal))).code == ExitCode.DONE:
                return True
        except ObjectMissing:
            continue
    return False
