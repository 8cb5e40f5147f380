"""Heartbeats to a real HTTPS server: what is sent, who is trusted, and a drain in the reply."""

from __future__ import annotations

import asyncio
import datetime
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deepcoder_contracts.judge import TestCase
from deepcoder_contracts.progress import Desired, ProgressReply, ProgressReport, TrainerPhase
from deepcoder_contracts.stage import ProgressEndpoint, StageConfig
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.runtime_info import RuntimeInfo
from deepcoder_trainer.stopping import Moment, Stop
from deepcoder_trainer.telemetry.progress import SENDS, Progress
from deepcoder_trainer.types import Problem


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    import ipaddress

    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


class Operator:
    def __init__(self) -> None:
        self.reports: list[ProgressReport] = []
        self.tokens: list[str | None] = []
        self.reply = ProgressReply()
        self.status = 200
        self.heard = asyncio.Event()
        self.standby = 0
        """Answers that come from a replica which stands by."""
        self.connections: list[object] = []

    async def receive(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("Authorization"))
        self.connections.append(request.transport)
        if self.standby:
            self.standby -= 1
            return web.Response(status=503)
        if self.status == 200:
            self.reports.append(ProgressReport.from_json(await request.read()))
        self.heard.set()
        return web.Response(body=self.reply.to_json(), status=self.status)


@asynccontextmanager
async def operator(cert: Path, key: Path) -> AsyncIterator[tuple[Operator, str]]:
    server = Operator()
    app = web.Application()
    app.router.add_post("/v1/runs/ns/run/progress", server.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield server, f"https://127.0.0.1:{runner.addresses[0][1]}/v1/runs/ns/run/progress"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def reporting(progress: Progress, endpoint: ProgressEndpoint) -> AsyncIterator[None]:
    task = asyncio.create_task(progress.run(endpoint))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def endpoint(url: str, ca: Path, tmp_path: Path) -> ProgressEndpoint:
    token = tmp_path / "token"
    token.write_text("first\n")
    return ProgressEndpoint(url=url, ca_file=str(ca), token_file=str(token), interval_seconds=0.05)


async def heard(server: Operator) -> None:
    server.heard.clear()
    async with asyncio.timeout(60):
        await server.heard.wait()


async def test_a_step_is_reported_with_what_the_operator_shows(
    tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        progress = Progress(make_config(), Stop())
        async with reporting(progress, endpoint(url, cert, tmp_path)):
            progress.on_phase(TrainerPhase.TRAINING)
            progress.on_step(StepReport(3, 3, {"reward_mean": 0.5}, {"passed": 8}, {"train": 2.0}, ()))
            while not server.reports or server.reports[-1].step != 3:
                await heard(server)
    report = server.reports[-1]
    assert (report.phase, report.max_steps, report.metrics) == (TrainerPhase.TRAINING, 10, {"reward_mean": 0.5})
    assert report.verdicts == {"passed": 8}
    assert report.expected_submissions is not None
    assert report.expected_submissions.count == 16
    assert set(server.tokens) == {"Bearer first"}


async def test_image_comes_with_a_reply_and_the_gpus_go_with_a_report(
    tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        runtime_info = RuntimeInfo(accelerator="NVIDIA H100 80GB HBM3")
        progress = Progress(make_config(), Stop(), runtime_info)
        server.reply = ProgressReply(image_id="registry/trainer@sha256:1")
        async with reporting(progress, endpoint(url, cert, tmp_path)):
            while runtime_info.image_id is None:
                await heard(server)
            server.reply = ProgressReply()
            for _ in range(3):
                await heard(server)
    assert runtime_info.image_id == "registry/trainer@sha256:1", "a reply that does not tell takes nothing back"
    assert server.reports[-1].accelerator == "NVIDIA H100 80GB HBM3"


def test_what_each_target_of_an_evaluation_came_to_is_reported(make_config: Callable[..., StageConfig]) -> None:
    progress = Progress(make_config(), Stop())
    progress.evaluated({"eval/held/Base/pass_at_1": 0.25})
    progress.evaluated({"eval/held/short/pass_at_1": 0.5})
    assert progress.report().metrics == {"eval/held/Base/pass_at_1": 0.25, "eval/held/short/pass_at_1": 0.5}


def test_how_far_a_curation_is_and_what_it_still_asks_of_judges_is_reported(
    make_config: Callable[..., StageConfig],
) -> None:
    progress = Progress(make_config(), Stop())
    progress.on_phase(TrainerPhase.CURATING)
    progress.curating("prepare", 500, 1000)
    report = progress.report()
    assert report.metrics == {"curation_prepare_done": 500.0, "curation_prepare_total": 1000.0}
    assert report.expected_submissions is not None
    assert report.expected_submissions.count == 0
    progress.curating("verify", 250, 1000)
    expected = progress.report().expected_submissions
    assert expected is not None
    assert (expected.count, expected.within_seconds) == (750, 30.0)
    progress.on_phase(TrainerPhase.STARTING)
    progress.on_step(StepReport(1, 1, {"loss": 0.5}, {}, {}, ()))
    assert progress.report().metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    ("with_tests", "with_answers", "asks_judges", "programs"),
    [(4, 0, True, 16), (3, 1, True, 12), (1, 3, True, 4), (1, 999, True, 1), (0, 4, True, 0), (4, 0, False, 0)],
)
@pytest.mark.parametrize("reward", [None, "own:reward"])
def test_only_programs_that_judges_will_get_are_expected(
    make_config: Callable[..., StageConfig],
    with_tests: int,
    with_answers: int,
    asks_judges: bool,
    programs: int,
    reward: str | None,
) -> None:
    """A reward of one's own may have programs run, too."""
    config = make_config()
    config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"reward": reward})})
    progress = Progress(config, Stop())
    progress.on_phase(TrainerPhase.TRAINING)
    code = Problem("c", "taco", "Print 1.", (TestCase(input="", output="1"),))
    mathematics = Problem("m", "aime", "What is 1?", (), answer="1")
    progress.trains_on([code] * with_tests + [mathematics] * with_answers, asks_judges=asks_judges)
    expected = progress.report().expected_submissions
    assert expected is not None
    assert expected.count == programs


async def test_a_drain_in_the_reply_stops_the_run_within_its_deadline(
    tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        server.reply = ProgressReply(desired=Desired.DRAIN, deadline_seconds=33)
        stop = Stop()
        progress = Progress(make_config(), stop)
        async with reporting(progress, endpoint(url, cert, tmp_path)):
            async with asyncio.timeout(60):
                await stop.reached(Moment.ASKED)
            assert 0 < stop.seconds_left() <= 33
            while server.reports[-1].phase is not TrainerPhase.DRAINING:
                await heard(server)


async def test_a_draining_run_reports_no_more_often_than_others(
    tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    """Each reply asks to drain, and a node pool that is upgraded drains many runs at once."""
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        server.reply = ProgressReply(desired=Desired.DRAIN, deadline_seconds=33)
        seldom = endpoint(url, cert, tmp_path).model_copy(update={"interval_seconds": 30})
        async with reporting(Progress(make_config(), Stop()), seldom):
            async with asyncio.timeout(60):
                while not server.reports or server.reports[-1].phase is not TrainerPhase.DRAINING:
                    await heard(server)
            await asyncio.sleep(1)
        assert [r.phase for r in server.reports].count(TrainerPhase.DRAINING) == 1


async def test_a_later_reply_with_less_time_takes_it(tmp_path: Path, make_config: Callable[..., StageConfig]) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        server.reply = ProgressReply(desired=Desired.DRAIN, deadline_seconds=300)
        stop = Stop()
        async with reporting(Progress(make_config(), stop), endpoint(url, cert, tmp_path)):
            async with asyncio.timeout(60):
                while not stop.requested:
                    await heard(server)
                server.reply = ProgressReply(desired=Desired.DRAIN, deadline_seconds=0)
                while stop.seconds_left() > 0:
                    await heard(server)


async def test_attempt_that_is_given_up_says_once_what_it_waits_for(
    tmp_path: Path, make_config: Callable[..., StageConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """Of one that stalled its log would else end with the last thing that went well."""
    never = asyncio.Event()

    async def collective_that_never_comes() -> None:
        await never.wait()

    async def step() -> None:
        await collective_that_never_comes()

    cert, key = certificate(tmp_path, "op")
    async with (
        operator(cert, key) as (server, url),
        reporting(Progress(make_config(), Stop()), endpoint(url, cert, tmp_path)),
    ):
        stuck = [asyncio.create_task(step(), name=f"rank {i}") for i in range(3)]
        await heard(server)
        assert "waits for" not in caplog.text
        server.reply = ProgressReply(desired=Desired.DRAIN, deadline_seconds=0)
        for _ in range(3):
            await heard(server)
        for task in stuck:
            task.cancel()
    assert caplog.text.count("given this attempt up") == 1
    assert re.search(r"3 × rank \d: .*collective_that_never_comes < test_trainer_progress.py:\d+ step", caplog.text)


async def test_a_standby_costs_nothing_and_the_token_is_read_again(
    tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        server.status = 503
        settings = endpoint(url, cert, tmp_path)
        async with reporting(Progress(make_config(), Stop()), settings):
            await heard(server)
            Path(settings.token_file).write_text("second\n")
            server.status = 200
            while not server.reports:
                await heard(server)
    assert server.tokens[-1] == "Bearer second"


async def test_a_replica_that_stands_by_is_left_for_another_at_once(
    tmp_path: Path, make_config: Callable[..., StageConfig], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        server.standby = 2
        settings = endpoint(url, cert, tmp_path).model_copy(update={"interval_seconds": 60.0})
        async with reporting(Progress(make_config(), Stop()), settings):
            await heard(server)
    assert len(server.reports) == 1
    assert len(set(map(id, server.connections))) == 3, "a connection that is kept leads to the same replica"
    assert "could not be sent" not in caplog.text


async def test_replicas_that_all_stand_by_are_asked_a_bounded_number_of_times_a_beat(
    tmp_path: Path, make_config: Callable[..., StageConfig], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        server.standby = 1000
        settings = endpoint(url, cert, tmp_path).model_copy(update={"interval_seconds": 60.0})
        async with reporting(Progress(make_config(), Stop()), settings):
            while "could not be sent" not in caplog.text:
                await asyncio.sleep(0.01)
    assert len(server.tokens) == SENDS


async def test_beats_share_a_connection_until_the_authority_changes(
    tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    cert, key = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        settings = endpoint(url, cert, tmp_path)
        async with reporting(Progress(make_config(), Stop()), settings):
            while len(server.reports) < 3:
                await heard(server)
            assert len(set(map(id, server.connections))) == 1
            cert.write_text(2 * cert.read_text())
            before = len(server.reports)
            while len(server.reports) < before + 2:
                await heard(server)
    assert len(set(map(id, server.connections))) == 2


async def test_a_server_with_another_authority_is_not_told_the_token(
    tmp_path: Path, make_config: Callable[..., StageConfig], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = certificate(tmp_path, "impostor")
    trusted, _ = certificate(tmp_path, "op")
    async with operator(cert, key) as (server, url):
        stop = Stop()
        async with reporting(Progress(make_config(), stop), endpoint(url, trusted, tmp_path)):
            while "could not be sent" not in caplog.text:
                await asyncio.sleep(0.01)
    assert server.tokens == []
    assert not stop.requested
