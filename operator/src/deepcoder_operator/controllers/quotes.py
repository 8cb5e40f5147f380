"""What a run's programs have said, as it may appear in a status, which more people can read than logs.

KubeRay puts the end of the trainer's output into a RayJob's message, and the trainer its last error, which may be that
of a worker on another pod, into exit.json. Neither knows all Secrets that the run's pods read; the operator does. They
are removed before a text is shortened. If one cannot be known, the text is left out and says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.base import sha256_digest
from deepcoder_operator.controllers.known_secrets import Unknown, redactor_of, templates_of
from deepcoder_operator.domain.world import StorageView, excerpt
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.storage.service import StorageService

_REMEMBERED: Final = 4096
"""Number of redacted texts kept in memory."""


@dataclass
class Quotes:
    """Redacts texts, each once: an attempt's last words are read in every pass."""

    kube: Kube
    storage: StorageService
    _told: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Digest of what was said, and the redacted text, by its source."""

    async def job(self, run: DeepCoderRun, job: Object) -> Object:
        """Return a RayJob with a message that may be quoted."""
        status = job.get("status") or {}
        said = status.get("message")
        if not said or run.status.attempt is None:
            return job
        text = await self._quotable(run, run.status.attempt.stage_index, job["metadata"]["uid"], said, excerpt)
        return {**job, "status": {**status, "message": text}}

    async def exit(self, run: DeepCoderRun, answer: StorageView | None) -> StorageView | None:
        """Return storage's answer with an exit record whose message may be quoted."""
        attempt = run.status.attempt
        if answer is None or attempt is None or answer.stage is None or answer.stage.exit is None:
            return answer
        record = answer.stage.exit
        if not record.message:
            return answer
        source = f"{run.metadata.uid}/{attempt.ordinal}"
        message = await self._quotable(run, attempt.stage_index, source, record.message, str)  # it is short already
        exit_record = record.model_copy(update={"message": message})
        return replace(answer, stage=replace(answer.stage, exit=exit_record))

    async def _quotable(
        self, run: DeepCoderRun, stage_index: int, source: str, said: str, shortened: Callable[[str], str]
    ) -> str:
        digest, known = sha256_digest(said.encode(errors="replace")), self._told.get(source)
        if known is not None and known[0] == digest:
            return known[1]
        try:
            redactor = await redactor_of(self.kube, self.storage, run, templates_of(run, stage_index))
        except Unknown as e:
            return f"the message is left out, because the secrets in it are not known: {e}"
        text = shortened(redactor.text(said))
        self._told[source] = (digest, text)
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return text
