"""Fetches models and problem sets to a local path, with a cache and a deadline.

A download goes to a temporary name next to its place in the cache and is renamed when it is complete, so an interrupted
download is never mistaken for a model. Sources in storage are cached by their listing (sizes, times), so a changed
source is fetched again. Our own exports have a manifest, and their files are checked against it. An export without a
manifest was refused or is incomplete.

A hub limits requests, and connections to it break. What it refuses for now is asked for again after as long as it says,
and a download goes on where it broke off. What it will never have is a mistake in the configuration.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deepcoder_contracts.layout import MANIFEST, parse_export_dir
from deepcoder_contracts.stage import ModelSource
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.storage import ObjectStore, StoredObject, refuse_traversal
from deepcoder_trainer.checkpoint.transfer import download_files, locked, retried, several
from deepcoder_trainer.checkpoint.verify import check_file, unlisted_files
from deepcoder_trainer.errors import BadConfig

CACHE = Path("~/.cache/deepcoder/sources")
"""Where downloads are kept by default."""

_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")
"""Where huggingface_hub keeps a repository's commit."""
_QUERY = re.compile(r"(?<=[^\s?])\?[^\s'\"?]+=\S+")
_HUB_TRIES = 5
_HUB_PAUSE = 60.0
"""Seconds to wait where a hub refuses further requests (429) and does not say for how long."""
_LONGEST_HUB_PAUSE = 300.0
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Where downloads go, and how storage is reached."""

    cache: Path = CACHE
    """Folder of the downloads."""

    endpoint: str | None = None
    """S3 endpoint URL of a server other than AWS."""

    region: str | None = None
    """S3 region."""

    deadline_s: float = 3600
    """Longest time for one source, in seconds."""

    def model(self, source: ModelSource) -> Path:
        """A local directory in Hugging Face layout.

        Raises `BadConfig` for a source that does not exist, `StorageUnavailable` when it does not arrive in time, and
        `CheckpointDamaged` for an export whose files are not those of its manifest.
        """
        path = self._local(source.uri, "model", source.revision, "model.uri")
        if not path.is_dir():
            raise BadConfig(
                f"model.uri {source.uri} is a file: name the folder that holds config.json", field="model.uri"
            )
        return path

    def dataset(self, uri: str, *, field: str = "dataset.uri") -> Path:
        """A local file or folder of problems; raises as `model` does. Its SHA-256 is checked by who reads it."""
        return self._local(uri, "dataset", None, field)

    def _local(self, uri: str, kind: str, revision: str | None, field: str) -> Path:
        scheme = urlsplit(uri).scheme
        cache = self.cache.expanduser()
        if scheme == "hf":
            return _within(self.deadline_s, uri, lambda: _from_hub(uri, kind, revision, cache, field))
        if scheme == "s3":
            return _within(self.deadline_s, uri, lambda: _from_s3(uri, kind, cache, self.endpoint, self.region, field))
        if scheme not in ("", "file"):
            raise BadConfig(f"{field} {uri} is neither hf://, s3://, file:// nor a path", field=field)
        path = on_disk(uri, field)
        if (path / MANIFEST).is_file():
            _check_export(path)
        elif kind == "model":
            _refuse_uncommitted(path.resolve().as_posix(), uri, field)
        return path


def pinned(source: ModelSource, path: Path) -> ModelSource:
    """The source as it was fetched to `path`: of a hub's repository with the commit, which a branch moves on from.

    So every machine fetches the same, and manifests say which it was.
    """
    if not source.uri.startswith("hf://") or (found := _SNAPSHOT.search(path.as_posix())) is None:
        return source
    return source.model_copy(update={"revision": found[1]})


def on_disk(uri: str, field: str) -> Path:
    """Where a path or a file:// URI leads; raises `BadConfig` where nothing is there."""
    path = Path(urlsplit(uri).path)
    if not path.exists():
        raise BadConfig(
            f"{field} {uri} does not exist: name what is on this machine's disk (in the image, or in a mounted "
            "volume), or an hf:// or s3:// URI",
            field=field,
        )
    return path


def _refuse_uncommitted(path: str, uri: str, field: str) -> None:
    """A folder in an export's place that has no manifest: its files may be another model than the checkpoint's."""
    if parse_export_dir("/".join(path.strip("/").split("/")[-3:])) is None:
        return
    raise BadConfig(
        f"{field} {uri} has no {MANIFEST}: it is what a stage left of an export that was refused, or is not whole. "
        "Name an export that has one, or make one of the stage's checkpoint with `deepcoder-trainer export`",
        field=field,
    )


def _check_export(path: Path) -> None:
    """Hash a local export's files against its manifest, which must list all that is there."""
    store = open_storage(f"file://{path.absolute()}")
    manifest, _ = read_manifest(store, "")
    problems = [p for entry in manifest.files for p in check_file(store, entry, deep=True)]
    problems += [f"{name} is not in its manifest: remove it" for name in unlisted_files(path, manifest)]
    if problems:
        raise CheckpointDamaged(f"{path}: {'; '.join(problems)}")


def _from_s3(uri: str, kind: str, cache: Path, endpoint: str | None, region: str | None, field: str) -> Path:
    parts = urlsplit(uri)
    folder, _, name = parts.path.strip("/").rpartition("/")
    parent = open_storage(f"s3://{parts.netloc}/{folder}".rstrip("/"), endpoint, region)
    # A key that ends in '/' is a folder's mark, as S3's consoles make them, and no file.
    objects = [o for o in parent.list(name) if o.key == name or (o.key.startswith(f"{name}/") and o.key[-1] != "/")]
    if not objects:
        raise BadConfig(
            f"{field} {uri}: there is nothing: check its bucket and key, and storage's endpoint", field=field
        )
    if kind == "model" and all(o.key != f"{name}/{MANIFEST}" for o in objects):
        _refuse_uncommitted(parts.path, uri, field)
    for o in objects:
        try:
            refuse_traversal(o.key)
        except ValueError as e:
            raise BadConfig(f"{field} {uri}: {e}: remove that object", field=field) from e
    listing = repr([(o.key, o.size, o.modified_at.isoformat()) for o in objects])
    target = cache / "s3" / hashlib.sha256(f"{endpoint} {uri} {listing}".encode()).hexdigest()[:32] / name
    with locked(target.parent):  # ranks of one machine ask for the same model at the same time
        if not target.exists():
            partial = target.with_name(f".{name}.partial")
            _copy_objects(parent, name, objects, partial)
            partial.rename(target)
    return target


def _copy_objects(parent: ObjectStore, name: str, objects: list[StoredObject], target: Path) -> None:
    if len(objects) == 1 and objects[0].key == name:
        _copy(parent, name, target)
        return
    shutil.rmtree(target, ignore_errors=True)
    if any(o.key == f"{name}/{MANIFEST}" for o in objects):
        manifest, _ = read_manifest(parent, name)
        download_files(parent, name, target, manifest.files)
        return
    # A single connection would take minutes for a large model.
    several(lambda o: _copy(parent, o.key, target / Path(o.key).relative_to(name)), objects)


def _copy(parent: ObjectStore, key: str, path: Path) -> None:
    """A connection that breaks in the middle of gigabytes costs them once more, and not the attempt."""
    retried(lambda: parent.get_file(key, path), f"download of {key}")


def _from_hub(uri: str, kind: str, revision: str | None, cache: Path, field: str) -> Path:
    for attempt in range(1, _HUB_TRIES + 1):
        try:
            return _from_hub_once(uri, kind, revision, cache, field)
        except _HubFailed as failed:
            if attempt == _HUB_TRIES:
                # Without its cause: an attempt's end is logged with all causes, and this may quote a signed address.
                raise StorageUnavailable(str(failed)) from None
            pause = failed.asked_pause if failed.asked_pause is not None else 2.0**attempt
            log.warning("%s; trying again in %.0f s (try %d of %d)", failed, pause, attempt, _HUB_TRIES)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


class _HubFailed(Exception):
    """The hub did not send it. What has arrived stays in the cache."""

    def __init__(self, uri: str, error: Exception) -> None:
        answer = _answer_of(error)
        words = _QUERY.sub("?…", str(error).partition("\n")[0])[:200]
        said = f", status {answer.status_code}" if answer is not None else f": {words}" if words else ""
        super().__init__(f"{uri} cannot be fetched from the hub: {type(error).__name__}{said}")
        self.asked_pause: float | None = None
        """Seconds that the hub wants to be left alone for."""
        if answer is not None and answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            told = answer.headers.get("Retry-After", "")
            self.asked_pause = min(float(told), _LONGEST_HUB_PAUSE) if told.isdecimal() else _HUB_PAUSE


def _answer_of(error: Exception) -> Any:
    """Return the hub's HTTP response, if there was one: huggingface_hub hides some behind an error of its own."""
    answers = (getattr(e, "response", None) for e in (error, error.__cause__))
    return next((a for a in answers if a is not None), None)


def _keep_signatures_out_of_logs() -> None:
    """A hub's files lie at signed addresses, by which whoever reads the log could fetch a private model, too."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells of each request
    for module in ("file_download", "utils._http"):
        logging.getLogger(f"huggingface_hub.{module}").addFilter(_without_query)


def _without_query(record: logging.LogRecord) -> bool:
    record.msg, record.args = _QUERY.sub("?…", record.getMessage()), ()
    return True


def _from_hub_once(uri: str, kind: str, revision: str | None, cache: Path, field: str) -> Path:
    """Raises `_HubFailed` for what another try may bring."""
    _keep_signatures_out_of_logs()
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    parts = uri.removeprefix("hf://").strip("/").split("/")
    if len(parts) < 2:
        raise BadConfig(f"{field} {uri}: a hub repository has the form hf://organization/name", field=field)
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    common: dict[str, Any] = {"repo_type": kind, "revision": revision, "cache_dir": cache / "hf", "etag_timeout": 30}
    try:
        if Path(inner).suffix:
            return Path(hf_hub_download(repo, inner, **common))
        patterns = list(_HUB_PATTERNS) if kind == "model" else ["*"]
        within = [f"{inner}/{pattern}" for pattern in patterns] if inner else patterns
        path = Path(snapshot_download(repo, allow_patterns=within, **common)) / inner
    except RepositoryNotFoundError as e:
        raise BadConfig(
            f"{field} {uri}: the hub has no such {kind}, or it needs a token (HF_TOKEN)", field=field
        ) from e
    except RevisionNotFoundError as e:
        raise BadConfig(
            f"{kind}.revision {revision}: {repo} has no such branch, tag or commit on the hub", field=f"{kind}.revision"
        ) from e
    except RemoteEntryNotFoundError as e:
        raise BadConfig(f"{field} {uri}: there is no file {inner} in {repo}", field=field) from e
    except HFValidationError as e:
        raise BadConfig(f"{field} {uri}: {repo} is no name of a repository: {e}", field=field) from e
    except Exception as e:  # those of whichever HTTP library it uses reach us as they are
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # our disk is full: the hub is there, and another try has no more room
        if constants.HF_HUB_OFFLINE and isinstance(e, LocalEntryNotFoundError):
            raise BadConfig(
                f"{field} {uri} is not in the cache {common['cache_dir']}, and HF_HUB_OFFLINE forbids asking the hub: "
                "unset it, or name a path or an s3:// URI",
                field=field,
            ) from e
        if (answer := _answer_of(e)) is not None and answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise BadConfig(
                f"{field} {uri}: the hub rejects the token in HF_TOKEN: renew it, or unset it if the {kind} is public",
                field=field,
            ) from None  # its cause may quote a signed address
        raise _HubFailed(uri, e) from e
    if not path.is_dir():
        raise BadConfig(f"{field} {uri}: there is no folder {inner} in {repo}", field=field)
    return path


def _within(deadline_s: float, uri: str, fetch: Callable[[], Path]) -> Path:
    """The fetched path. The thread of a fetch that is too slow is left behind: it cannot keep the process alive."""
    result: list[Path] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(fetch())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=run, name=f"fetch {uri}", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if failure:
        raise failure[0]
    if not result:
        raise StorageUnavailable(f"{uri} did not arrive within {deadline_s:g} s")
    return result[0]
