"""Bounds what is read of a server's answers, whatever they say of their own length.

Anyone who may create a run names its server, and an answer that does not end would take the memory of all runs.
Documents have limits by kind. botocore reads listings, errors and all other answers but objects as a whole, and parses
them into many times their size, so they have a limit too. Payloads are hashed in pieces, and have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore.response import StreamingBody

from deepcoder_contracts.layout import MANIFEST

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from botocore.httpsession import URLLib3Session

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""Size, in bytes, of the largest manifest that is read. A manifest of ten thousand files has 2 MB."""

MAX_RECORD_BYTES = 64 * 1024
"""Size, in bytes, of the largest other document that is read: RUN.json, a claim, an exit record."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Size, in bytes, of the largest answer without a document. A page of a thousand keys has at most some 3 MB."""

MAX_TAGS = 64 * 1024
"""Largest number of XML tags in such an answer. A page of a thousand objects has 28 thousand."""

_FIRST_ERROR_STATUS = 300


class TooLarge(Exception):
    """An answer is larger than any real one. The message says how."""


def most_of(key: str) -> int:
    """Return the size, in bytes, of the largest document that may lie at a key."""
    return MAX_MANIFEST_BYTES if key.rsplit("/", 1)[-1] == MANIFEST else MAX_RECORD_BYTES


def read(body: StreamingBody, most: int) -> bytes:
    """Read a body to its end. Raises `TooLarge`."""
    found = bytearray()
    while piece := body.read(most + 1 - len(found)):
        found += piece
        if len(found) > most:
            raise TooLarge(f"has more than {most} bytes")
    return bytes(found)


class BoundedSession:
    """Sends a client's requests. Of an answer, it reads what botocore would read as a whole."""

    def __init__(self, session: URLLib3Session) -> None:
        self._session = session

    @classmethod
    def put_into(cls, client: Any) -> None:
        """Have a client send its requests through such a session."""
        client._endpoint.http_session = cls(client._endpoint.http_session)

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """Send a request. Raises `TooLarge`, and what botocore's own session raises."""
        streams, request.stream_output = request.stream_output, True
        answer = self._session.send(request)
        if not streams or answer.status_code >= _FIRST_ERROR_STATUS:
            try:
                body = StreamingBody(answer.raw, None)  # type: ignore[arg-type]  # a HEAD's length is not its own
                content = answer._content = read(body, MAX_ANSWER_BYTES)  # type: ignore[attr-defined]
                if content.count(b"<") > MAX_TAGS:
                    raise TooLarge(f"has more than {MAX_TAGS} XML tags")
            except BaseException:
                answer.raw.close()
                raise
        return answer

    def close(self) -> None:
        """Close all connections."""
        self._session.close()
