"""A run's folder in its bucket: steps, samples, evaluations, logs of past attempts, and a model's lineage.

It holds what attempts have stored, so metrics and samples lag a running step by up to one checkpoint. This module
writes nothing. Raises `StorageError` if the bucket cannot be read, and `NoData` if there is no data of a kind yet.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from deepcoder_client.connection import Connection
from deepcoder_client.errors import NoData, StorageError
from deepcoder_client.storage import Bucket, Stored, credentials
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.chain import Damaged, Known, Link, Missing, read_manifest, walk_chain
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.layout import (
    CLAIM,
    DRIVER_LOG,
    EXIT,
    MANIFEST,
    METRICS,
    RESULTS,
    AttemptFile,
    attempts_dir,
    evaluation_file,
    exit_key,
    log_key,
    metrics_key,
    parse_attempt_file,
    parse_samples_key,
    samples_dir,
    samples_key,
)
from deepcoder_contracts.manifest import Manifest
from deepcoder_contracts.steps import StepRecord, merge_steps

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_MERGED = ("stage", "step", "ordinal", "time")


@dataclass(frozen=True)
class Attempt:
    """The stored data of a past or live attempt."""

    stage: str
    ordinal: int
    claimed: datetime | None
    """When storage received its claim."""
    exit: ExitRecord | None
    """Its exit record; None while it runs or if it was killed."""
    logs: tuple[str, ...]
    """Names of its logs."""
    ended: datetime | None = None
    """When storage received its exit record."""
    seen: datetime | None = None
    """When storage last received anything from it."""


@dataclass(frozen=True)
class Evaluation:
    """A committed evaluation."""

    manifest: Manifest
    results: dict[str, Any]
    """Content of results.json: figures by target and problem set, with intervals, and paired comparisons."""


class RunFolder:
    """One run's folder."""

    def __init__(self, bucket: Bucket, key: str, run: DeepCoderRun) -> None:
        """`key` is the folder's prefix, without slashes at its ends."""
        self.bucket, self.key, self.run = bucket, key, run
        self.stages = tuple(stage.name for stage in run.spec.stages)

    @property
    def uri(self) -> str:
        """The folder's URI."""
        return f"s3://{self.bucket.name}/{self.key}"

    def attempts(self) -> list[Attempt]:
        """Return all attempts with stored data, sorted by ordinal."""
        found: dict[tuple[str, int], dict[str, datetime]] = {}
        for stage in self.stages:
            for file, stored in self._of_attempts(stage):
                found.setdefault((stage, file.ordinal), {})[file.name] = stored.modified
        return [
            Attempt(
                stage=stage, ordinal=ordinal, claimed=files.get(CLAIM),
                exit=self._exit(stage, ordinal) if EXIT in files else None,
                logs=tuple(sorted(n.removeprefix("logs/") for n in files if n.startswith("logs/"))),
                ended=files.get(EXIT), seen=max(files.values()),
            )
            for (stage, ordinal), files in sorted(found.items(), key=lambda item: item[0][1])
        ]  # fmt: skip

    def read_log(self, stage: str, ordinal: int, name: str = DRIVER_LOG) -> str:
        """Return a log of an attempt, or a file that the operator saved with it. Raises `NoData`."""
        key = f"{self.key}/{log_key(stage, ordinal, name)}"
        try:
            return self.bucket.get(key)[0].decode(errors="replace")
        except Missing:
            raise NoData(
                f"s3://{self.bucket.name}/{key} does not exist: a log is stored when its attempt has ended; "
                "`kubectl deepcoder logs RUN --attempts` lists the stored ones"
            ) from None

    def steps(self) -> list[StepRecord]:
        """Return every trained step of all stages with its metrics; see `merge_steps` for those trained twice."""
        return merge_steps(
            [(ordinal, self.read_metrics(stage, ordinal)) for stage, ordinal, _ in self.metrics_objects()]
        )

    def metrics_objects(self) -> list[tuple[str, int, Stored]]:
        """Return each attempt's metrics.jsonl as (stage, ordinal, object), so that callers can skip unchanged ones."""
        return [
            (stage, file.ordinal, stored)
            for stage in self.stages
            for file, stored in self._of_attempts(stage)
            if file.name == METRICS
        ]

    def _of_attempts(self, stage: str) -> Iterator[tuple[AttemptFile, Stored]]:
        """Yield every object that attempts at a stage have stored."""
        for stored in self.bucket.objects(f"{self.key}/{attempts_dir(stage)}/"):
            if (file := parse_attempt_file(stage, stored.key.removeprefix(f"{self.key}/"))) is not None:
                yield file, stored

    def read_metrics(self, stage: str, ordinal: int) -> list[str]:
        """Return the lines of an attempt's metrics.jsonl; empty if it has none."""
        try:
            data, _ = self.bucket.get(f"{self.key}/{metrics_key(stage, ordinal)}", data=True)
        except Missing:
            return []
        return data.decode(errors="replace").splitlines()

    def metrics(self) -> pd.DataFrame:
        """Return `steps` as a DataFrame: stage, step, ordinal, time, metrics, `verdict/…`, `seconds/…` per row."""
        return metrics_frame(self.steps())

    def sample_steps(self, stage: str | None = None) -> list[tuple[str, int]]:
        """Return (stage, step) of all stored samples, in order."""
        found = []
        for name in self.stages if stage is None else (stage,):
            stored = self.bucket.objects(f"{self.key}/{samples_dir(name)}/")
            steps = (parse_samples_key(each.key) for each in stored)
            found += sorted((name, step) for step in steps if step is not None)
        return found

    def sample_table(self, stage: str | None = None, step: int | None = None) -> pa.Table:
        """Return the rollouts of a step, by default the newest stored one: a row per response, including dropped draws.

        Raises `NoData`.
        """
        if stage is None or step is None:
            known = [each for each in self.sample_steps(stage) if step is None or each[1] == step]
            if not known:
                raise NoData(
                    f"{self.uri} has no samples{f' of stage {stage}' if stage else ''}"
                    f"{f' at step {step}' if step is not None else ''}: they are stored with each checkpoint"
                )
            stage, step = known[-1]
        import pyarrow as pa
        from pyarrow import parquet as pq

        try:
            table = pq.read_table(io.BytesIO(self.read_samples(stage, step)))
        except pa.ArrowInvalid as error:
            raise StorageError(f"samples of stage {stage} step {step} cannot be read: {error}") from error
        return table.append_column("stage", pa.array([stage] * table.num_rows, pa.string()))

    def samples_object(self, stage: str, step: int) -> Stored:
        """Return the object with a step's rollouts; training the step again replaces it. Raises `NoData`."""
        try:
            return self.bucket.head(f"{self.key}/{samples_key(stage, step)}")
        except Missing:
            raise NoData(f"{self.uri} has no samples of stage {stage} step {step}") from None

    def read_samples(self, stage: str, step: int) -> bytes:
        """Return a step's rollouts as Parquet. Raises `NoData`."""
        try:
            return self.bucket.get(f"{self.key}/{samples_key(stage, step)}", data=True)[0]
        except Missing:
            raise NoData(f"{self.uri} has no samples of stage {stage} step {step}") from None

    def samples(self, stage: str | None = None, step: int | None = None) -> pd.DataFrame:
        """Return `sample_table` as a DataFrame."""
        _need_pandas()
        frame: pd.DataFrame = self.sample_table(stage, step).to_pandas()
        return frame

    def evaluations(self, damaged: list[str] | None = None) -> list[Evaluation]:
        """Return the committed evaluations, oldest first.

        Evaluations that cannot be read are left out and named in `damaged`. Without that list, the first one raises
        `StorageError`.
        """
        found = []
        for name in self.bucket.folders(f"{self.key}/eval/"):
            folder = f"{self.key}/eval/{name}"
            try:
                stored, _ = self.bucket.get(f"{folder}/{MANIFEST}")
            except Missing:
                continue  # not committed
            try:
                manifest = read_manifest(stored, folder)
                found.append(Evaluation(manifest, self._results(folder, manifest)))
            except (Damaged, Missing, ValueError) as error:
                why = f"{error} is missing" if isinstance(error, Missing) else str(error)
                said = f"s3://{self.bucket.name}/{folder} cannot be read: {why}"
                if damaged is None:
                    raise StorageError(said) from error
                damaged.append(said)
        return sorted(found, key=lambda each: each.manifest.created_at)

    def _results(self, folder: str, manifest: Manifest) -> dict[str, Any]:
        """Return an evaluation's results.json, checked against its manifest."""
        entries = {entry.path: entry for entry in manifest.files}
        path = evaluation_file(entries, RESULTS)
        if path is None:
            raise Damaged(f"{folder}/{MANIFEST} lists no {RESULTS}")
        data = self.bucket.get(f"{folder}/{path}")[0]
        if hashlib.sha256(data).hexdigest() != entries[path].sha256:
            raise Damaged(f"{folder}/{path} is not what {MANIFEST} beside it says: it was changed")
        found: dict[str, Any] = json.loads(data)
        return found

    def lineage(
        self, uri: str | None = None, digest: str | None = None, *, deep: bool = False,
        known: Known = lambda _uri, _digest: None,
    ) -> Iterator[Link]:  # fmt: skip
        """Yield each manifest from a folder up to the root, verified on the way; by default from the newest checkpoint.

        `digest` is the expected digest of the first manifest; `deep` reads every byte; `known` has links that need not
        be read again. Raises
        `deepcoder_contracts.chain.Damaged` at the first manifest that does not match its child.
        """
        if uri is None:
            latest = self.run.status.latest_checkpoint
            if latest is None:
                raise NoData(f"{self.run.metadata.namespace}/{self.run.metadata.name} has no checkpoint yet")
            uri, digest = latest.uri, latest.digest
        bucket, _, folder = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or bucket != self.bucket.name or not folder:
            raise StorageError(
                f"{uri} is not in the run's bucket: give s3://{self.bucket.name}/… of a folder with {MANIFEST}"
            )
        return walk_chain(self.bucket, folder.rstrip("/"), digest, deep=deep, known=known)

    def _exit(self, stage: str, ordinal: int) -> ExitRecord | None:
        try:
            return ExitRecord.from_json(self.bucket.get(f"{self.key}/{exit_key(stage, ordinal)}")[0])
        except (Missing, ValueError):
            return None


def open_folder(connection: Connection, run: DeepCoderRun, endpoint: str | None = None) -> RunFolder:
    """Open a run's folder. Raises `NoData` before the operator has accepted the run."""
    key, s3 = folder_key(run), run.spec.checkpoint.s3
    return RunFolder(Bucket(s3, credentials(connection, run.metadata.namespace, s3), endpoint), key, run)


def folder_key(run: DeepCoderRun) -> str:
    """Return the prefix of a run's folder, without slashes at its ends. Raises `NoData` before the run was accepted."""
    if run.status.provenance is None:
        raise NoData(
            f"{run.metadata.namespace}/{run.metadata.name} has no folder yet: the operator has not accepted it"
        )
    return run.status.provenance.storage.removeprefix("s3://").partition("/")[2].strip("/")


def metrics_frame(steps: Iterable[StepRecord]) -> pd.DataFrame:
    """Return steps as a DataFrame."""
    pandas = _need_pandas()
    rows = [metrics_row(step) for step in steps]
    frame: pd.DataFrame = pandas.DataFrame(rows, columns=None if rows else list(_MERGED))
    return frame


def metrics_row(step: StepRecord) -> dict[str, Any]:
    """Return a step as one flat row."""
    verdicts = {f"verdict/{name}": count for name, count in step.verdicts.items()}
    seconds = {f"seconds/{name}": value for name, value in step.phase_seconds.items()}
    own = {"stage": step.stage, "step": step.step, "ordinal": step.ordinal, "time": step.time}
    return {**own, **step.metrics, **verdicts, **seconds}


def _need_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise StorageError("data frames need pandas: pip install 'deepcoder-client[pandas]'") from error
    return pandas
