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
_Known = tuple[str, "asyncio.Future[JudgeResponse]"]


class ContentConflict(Exception):
    """The id is known with another content."""


def content_digest(request: JudgeRequest) -> str:
    """Return the digest of what is judged; the deadline is not part of it, since retries have less time left."""
    return hashlib.sha256(request.model_dump_json(exclude={"deadline_s"}).encode()).hexdigest()


class Answers:
    """Submissions in flight, and at most `max_answers` of those answered lately."""

    def __init__(self, max_answers: int) -> None:
        self._max_answers = max_answers
        self._in_flight: dict[Key, _Known] = {}
        self._answered: OrderedDict[Key, _Known] = OrderedDict()

    def find(self, key: Key, digest: str) -> asyncio.Future[JudgeResponse] | None:
        """Return the answer to `key`, under way or given, None if there is none. Raises ContentConflict."""
        known = self._in_flight.get(key) or self._answered.get(key)
        if known is None:
            return None
        if known[0] != digest:
            raise ContentConflict
        if key in self._answered:
            self._answered.move_to_end(key)
        return known[1]

    def find_or_start(
        self, key: Key, digest: str, start: Callable[[], asyncio.Future[JudgeResponse]]
    ) -> asyncio.Future[JudgeResponse]:
        """Return the answer to `key`, started if there is none. Raises ContentConflict, and as `start`."""
        answer = self.find(key, digest)
        if answer is None:
            answer = start()
            self._in_flight[key] = (digest, answer)
            answer.add_done_callback(lambda done: self._settle(key, done))
        return answer

    def _settle(self, key: Key, answer: asyncio.Future[JudgeResponse]) -> None:
        known = self._in_flight.pop(key)
        if answer.cancelled() or answer.exception() is not None or answer.result().passed is None:
            return
        self._answered[key] = known
        while len(self._answered) > self._max_answers:
            self._answered.popitem(last=False)
