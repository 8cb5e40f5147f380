"""One judgement for one (run, id): repeated while it is in flight or was answered not long ago.

A client that lost an answer asks again and gets the same one; it is never judged twice here. The same id with another
content is a client's mistake and refused. An answer of `error` is forgotten at once: asking again is then a retry.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse

Key = tuple[str, str]


class ContentConflict(Exception):
    """The id is known with another content."""


def content_digest(request: JudgeRequest) -> str:
    """Return the digest of what is judged; the deadline is not part of it, since retries have less time left."""
    return hashlib.sha256(request.model_dump_json(exclude={"deadline_s"}).encode()).hexdigest()


class Answers:
    """In flight and recently answered submissions, at most `max_answers` of the latter."""

    def __init__(self, max_answers: int) -> None:
        self._max_answers = max_answers
        self._known: OrderedDict[Key, tuple[str, asyncio.Future[JudgeResponse]]] = OrderedDict()

    def find_or_start(
        self, key: Key, digest: str, start: Callable[[], asyncio.Future[JudgeResponse]]
    ) -> asyncio.Future[JudgeResponse]:
        """Return the answer under way for `key`, started if there is none. Raises ContentConflict, and as `start`."""
        known = self._known.get(key)
        if known is not None:
            if known[0] != digest:
                raise ContentConflict
            self._known.move_to_end(key)
            return known[1]
        answer = start()
        self._known[key] = (digest, answer)
        answer.add_done_callback(lambda done: self._settle(key, done))
        return answer

    def _settle(self, key: Key, answer: asyncio.Future[JudgeResponse]) -> None:
        if answer.cancelled() or answer.exception() is not None or answer.result().passed is None:
            self._known.pop(key, None)
            return
        excess = len(self._known) - self._max_answers
        for old in [known for known, (_, future) in self._known.items() if future.done()][: max(0, excess)]:
            del self._known[old]
