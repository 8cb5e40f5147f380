"""The bucket that does not take the demo's files: said in a line, with what to look at."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from deepcoder_demo.data import UploadFailed, mend, upload
from deepcoder_demo.settings import S3Access


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[S3Access]:
    """An HTTP server that answers every request with one status."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(request.param)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}).start()
    url = f"http://127.0.0.1:{httpd.server_port}"
    yield S3Access(url, url, "team-ml", "us-east-1", "key", "secret")
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(
    ("server", "said"), [(403, "AWS_SECRET_ACCESS_KEY"), (404, "DEEPCODER_S3_BUCKET")], indirect=["server"]
)
def test_a_bucket_that_refuses_is_named_with_what_to_check(server: S3Access, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(UploadFailed, match=rf"bucket team-ml at {server.endpoint} does not take.*{said}"):
        upload(tmp_path, server)


def test_a_server_that_does_not_answer_is_a_matter_of_its_url() -> None:
    assert "DEEPCODER_S3_HOST_ENDPOINT" in mend(EndpointConnectionError(endpoint_url="http://nowhere"))
