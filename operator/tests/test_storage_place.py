"""For a run the operator asks no server on its own machine or link, unless the chart names it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from plan_world import make_run

from deepcoder_operator.domain.query import StorageQuery
from deepcoder_operator.storage.endpoint_check import vet_address
from deepcoder_operator.storage.s3 import Credentials, StorageProblem
from deepcoder_operator.storage.service import StorageService


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::ffff:169.254.169.254]", "224.0.0.1"])
@pytest.mark.parametrize("loopback", [True, False])
def test_link_and_metadata_are_refused_wherever_the_operator_runs(host: str, loopback: bool) -> None:
    with pytest.raises(StorageProblem, match="own machine or link") as refusal:
        vet_address(f"http://{host}/bucket?x=y", loopback=loopback)
    assert refusal.value.problem.reason == "EndpointNotAllowed"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "127.1"])
def test_own_machine_is_refused_in_a_pod_and_may_be_asked_by_hand(host: str) -> None:
    vet_address(f"http://{host}:15000/quitquitquit", loopback=True)
    with pytest.raises(StorageProblem, match="own machine or link"):
        vet_address(f"http://{host}:15000/quitquitquit", loopback=False)


@pytest.mark.parametrize("host", ["10.0.0.7", "192.0.2.1", "no-such-name.invalid"])
def test_other_servers_are_asked(host: str) -> None:
    vet_address(f"https://{host}/bucket", loopback=False)


@pytest.mark.parametrize(("named", "asked"), [(False, False), (True, True)])
async def test_what_the_chart_names_may_be_anywhere_and_nothing_else_is_sent_a_request(
    named: bool, asked: bool
) -> None:
    seen: list[str] = []

    class Neighbour(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    class Reader:
        async def read(self, *_: str) -> Credentials:
            return Credentials("a", "b", source="Secret s3")

        def forget(self, *_: str) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Neighbour)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    reader: Any = Reader()
    service = StorageService(reader, [endpoint] if named else [], loopback=False)
    try:
        where = {"bucket": "quitquitquit", "endpoint": endpoint, "credentialsSecretRef": {"name": "s3"}}
        answer = await service.answer(make_run(checkpoint={"s3": where}), StorageQuery(admission=True))
    finally:
        service.close()
        server.shutdown()
        server.server_close()
    assert bool(seen) is asked
    assert named or (answer.problem is not None and answer.problem.reason == "EndpointNotAllowed")
