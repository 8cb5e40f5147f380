"""`deepcoder-sandbox serve`: turns its options into a judge that listens.

Only that command imports it, because a server takes longer to load than everything that judging a file needs.

Raises BadOption and pod_memory.DoesNotFit before anything is started, if options conflict or do not fit the container;
pod_memory.OwnLimitTooLow, FileExistsError and OSError if it cannot serve.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import uuid

from deepcoder_sandbox import attack, limits, pod_memory
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.server.app import Judge
from deepcoder_sandbox.server.auth import BadToken, Token
from deepcoder_sandbox.server.idempotency import Answers
from deepcoder_sandbox.server.memory_budget import ANSWERS_MB, MemoryBudget, held_mb
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.server.serve import Listen, serve
from deepcoder_sandbox.tests_store import TestStore
from deepcoder_sandbox.zygote_process import ZygoteConfig


class BadOption(ValueError):
    """Options conflict, or the token file cannot be used."""


class Serving:
    """A server whose options have been checked."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Check the command's options. Raises BadOption and DoesNotFit."""
        self._options = options
        try:
            self._listen = _listen(options)
        except BadToken as error:
            raise BadOption(str(error)) from error
        self._max_memory_mb = pod_memory.largest_program_mb(
            options.slots,
            options.max_memory_mb,
            options.tests_store_mb,
            held_mb(options.max_queued_mb, options.max_body_mb),
            pod_memory.container_limit_mb(),
        )

    def run(self, config: ZygoteConfig, findings: attack.Findings) -> None:
        """Serve until SIGTERM or SIGINT. `findings` is what the attacks found with `config`. Raises OwnLimitTooLow."""
        asyncio.run(serve(self._judge(config, findings), self._listen))

    def _judge(self, config: ZygoteConfig, findings: attack.Findings) -> Judge:
        options = self._options
        max_memory_mb = pod_memory.within_own_limit(self._max_memory_mb, options.max_memory_mb, findings.most_memory_mb)
        metrics = Metrics()
        pool = Pool(
            config,
            options.slots,
            f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
            options.max_queued or limits.MAX_QUEUED_A_SLOT * options.slots,
            metrics.observer(),
            options.recycle_after,
        )
        judge = Judge(
            pool=pool,
            tier=findings.tier,
            limits=findings.limits,
            metrics=metrics,
            tests=TestStore(options.tests_store_mb * limits.MIB),
            answers=Answers(max_answers=10_000, max_bytes=ANSWERS_MB * limits.MIB),
            room=MemoryBudget(options.max_queued_mb * limits.MIB),
            max_body_bytes=options.max_body_mb * limits.MIB,
            max_memory_mb=max_memory_mb,
        )
        metrics.watch(judge.capacity)
        metrics.watch_memory(judge.held_bytes)
        return judge


def _listen(options: argparse.Namespace) -> Listen:
    token = Token(options.token_file) if options.token_file else None
    if options.socket is not None:
        return Listen(socket=options.socket, token=token, drain_s=options.drain_seconds)
    if token is None:
        raise BadOption("--token-file is needed with --host and --port: or serve a Unix socket with --socket PATH")
    return Listen(host=options.host, port=options.port, token=token, drain_s=options.drain_seconds)
