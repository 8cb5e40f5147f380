"""One judgement per (run, id), whose answer is repeated while it is in flight and for some time afterwards.

A client that lost an answer asks again and gets the same one; it is never judged twice here. The same id with different
content is a client's mistake and is refused. An `error` answer is forgotten at once, so that asking again is a retry.
Kept answers are bounded in number and in bytes, because an answer to thousands of tests is megabytes long.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse

Key = tuple[str, str]
_Known = tuple[str, "asyncio.Future[bytes]"]
_ENTRY_BYTES = 1024
"""Bytes of an answer's entry beside its text: key, digest, future."""


class ContentConflict(Exception):
    """The id is known with different content."""


def content_digest(request: JudgeRequest) -> str:
    """Return the digest of what is judged. The deadline is not part of it, because retries have less time left.

    The texts are hashed one by one, each after its length, because a copy of them all would be as long as the body.
    """
    digest = hashlib.sha256(request.model_dump_json(exclude={"deadline_s", "code", "tests"}).encode())
    texts = [request.code, *(text for test in request.tests or () for text in (test.input, test.output))]
    for text in texts:
        encoded = text.encode()
        digest.update(f" {len(encoded)} ".encode())
        digest.update(encoded)
    return digest.hexdigest()


class Answers:
    """Submissions in flight, and recent answers, at most `max_answers` and `max_bytes`."""

    def __init__(self, max_answers: int, max_bytes: int) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._in_flight: dict[Key, _Known] = {}
        self._answered: OrderedDict[Key, _Known] = OrderedDict()
        self.kept_bytes = 0
        """Memory of the kept answers."""

    def find(self, key: Key, digest: str) -> asyncio.Future[bytes] | None:
        """Return the answer to `key` as JSON, pending or final; None if there is none. Raises ContentConflict."""
        known = self._in_flight.get(key) or self._answered.get(key)
        if known is None:
            return None
        if known[0] != digest:
            raise ContentConflict
        if key in self._answered:
            self._answered.move_to_end(key)
        return known[1]

    def start(self, key: Key, digest: str, judged: asyncio.Future[JudgeResponse]) -> asyncio.Future[bytes]:
        """Register a submission that `find` does not know, and return its future answer as JSON."""
        answer: asyncio.Future[bytes] = judged.get_loop().create_future()
        self._in_flight[key] = (digest, answer)
        judged.add_done_callback(lambda done: self._settle(key, done))
        return answer

    def _settle(self, key: Key, judged: asyncio.Future[JudgeResponse]) -> None:
        digest, answer = self._in_flight.pop(key)
        failure = asyncio.CancelledError() if judged.cancelled() else judged.exception()
        if failure is not None:
            answer.set_exception(failure)
            answer.exception()  # mark it as read: its client may be gone
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
