"""One judgement for one (run, id): repeated while it is in flight or was answered not long ago.

A client that lost an answer asks again and gets the same one; it is never judged twice here. The same id with another
content is a client's mistake and refused. An answer of `error` is forgotten at once: asking again is then a retry.
What is kept is bounded in number and in bytes: an answer to thousands of tests is megabytes long.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse

Key = tuple[str, str]
_Known = tuple[str, "asyncio.Future[bytes]"]
_ENTRY_BYTES = 1024
"""An answer's place beside its text: key, digest, future."""


class ContentConflict(Exception):
    """The id is known with another content."""


def content_digest(request: JudgeRequest) -> str:
    """Return the digest of what is judged; the deadline is not part of it, since retries have less time left.

    The texts are hashed one by one, each with its length before it: a copy of them all would be as long as the body.
    """
    digest = hashlib.sha256(request.model_dump_json(exclude={"deadline_s", "code", "tests"}).encode())
    texts = [request.code, *(text for test in request.tests or () for text in (test.input, test.output))]
    digest.update(f" {len(texts)}".encode())
    for text in texts:
        encoded = text.encode()
        digest.update(f" {len(encoded)} ".encode())
        digest.update(encoded)
    return digest.hexdigest()


class Answers:
    """Submissions in flight, and at most `max_answers` and `max_bytes` of those answered lately."""

    def __init__(self, max_answers: int, max_bytes: int) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._in_flight: dict[Key, _Known] = {}
        self._answered: OrderedDict[Key, _Known] = OrderedDict()
        self.kept_bytes = 0
        """Memory of the answers that are kept."""

    def find(self, key: Key, digest: str) -> asyncio.Future[bytes] | None:
        """Return the answer to `key` as JSON, under way or given, None if there is none. Raises ContentConflict."""
        known = self._in_flight.get(key) or self._answered.get(key)
        if known is None:
            return None
        if known[0] != digest:
            raise ContentConflict
        if key in self._answered:
            self._answered.move_to_end(key)
        return known[1]

    def start(self, key: Key, digest: str, judged: asyncio.Future[JudgeResponse]) -> asyncio.Future[bytes]:
        """Take note of a submission that `find` does not know; return its answer as JSON."""
        answer: asyncio.Future[bytes] = judged.get_loop().create_future()
        self._in_flight[key] = (digest, answer)
        judged.add_done_callback(lambda done: self._settle(key, done))
        return answer

    def _settle(self, key: Key, judged: asyncio.Future[JudgeResponse]) -> None:
        digest, answer = self._in_flight.pop(key)
        failure = asyncio.CancelledError() if judged.cancelled() else judged.exception()
        if failure is not None:
            answer.set_exception(failure)
            answer.exception()  # its client may have left: then nobody else looks at it
            return
        text = judged.result().model_dump_json().encode()
        answer.set_result(text)
        if judged.result().passed is None:
            return
        self._answered[key] = (digest, answer)
        self.kept_bytes += _size(answer)
        while len(self._answered) > self._max_answers or self.kept_bytes > self._max_bytes:
            _, (_, oldest) = self._answered.popitem(last=False)
            self.kept_bytes -= _size(oldest)


def _size(answer: asyncio.Future[bytes]) -> int:
    return _ENTRY_BYTES + len(answer.result())
