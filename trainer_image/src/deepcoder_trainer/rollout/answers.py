"""Comparing a model's final answer with the right one, without trusting the model's mathematics.

Answers that are written alike are the same; others go to a verifier process (`answer_worker`), a few of them at once.
One that is not done within `SECONDS` is ended, and so is one that ends by itself: what cannot be compared is not right.
Only a verifier that does not start at all is our own failure: then there is no outcome, and the sample is
quarantined.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process

from deepcoder_contracts.judge import Verdict
from deepcoder_trainer.problems.answers import same_text
from deepcoder_trainer.problems.rows import LONGEST_ANSWER

log = logging.getLogger(__name__)

PARALLEL = 2
SECONDS = 10.0
START_SECONDS = 120.0
"""Importing sympy takes two, on a machine with nothing else to do."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV")


class NoVerifier(Exception):
    """A verifier process did not start."""


class AnswerVerifier:
    """Compares answers; starts its processes when they are needed."""

    def __init__(
        self, command: tuple[str, ...] = (sys.executable, "-m", "deepcoder_trainer.rollout.answer_worker")
    ) -> None:
        self._command = command
        self._free = asyncio.Semaphore(PARALLEL)
        self._idle: list[Process] = []
        self._all: set[Process] = set()

    async def compare(self, gold: str, given: str) -> Verdict:
        """passed, wrong_answer, time_limit, or runtime_error where the comparison itself broke; error: no verifier."""
        if same_text(gold, given):
            return Verdict.PASSED
        if len(given) > LONGEST_ANSWER:
            return Verdict.WRONG_ANSWER
        async with self._free:
            process = None
            try:
                process = self._idle.pop() if self._idle else await self._start()
                async with asyncio.timeout(SECONDS):
                    right = await _ask(process, {"gold": gold, "given": given})
                self._idle.append(process)
                return Verdict.PASSED if right else Verdict.WRONG_ANSWER
            except NoVerifier as error:
                log.error("answers cannot be compared: %s", error)
                return Verdict.ERROR
            except TimeoutError:
                return Verdict.TIME_LIMIT
            except (OSError, ValueError, KeyError):
                return Verdict.RUNTIME_ERROR
            finally:
                if process is not None and process not in self._idle:
                    await self._end(process)

    async def close(self) -> None:
        """End all processes."""
        for process in list(self._all):
            await self._end(process)
        self._idle.clear()

    async def _start(self) -> Process:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
            )
        except OSError as error:
            raise NoVerifier(f"the verifier cannot be started: {error}") from error
        self._all.add(process)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                if await process.stdout.readline():
                    return process
            reason = f"the verifier ended with status {await process.wait()}: is math-verify installed?"
        except TimeoutError:
            reason = f"the verifier did not start within {START_SECONDS:.0f} s"
        except BaseException:
            await self._end(process)
            raise
        await self._end(process)
        raise NoVerifier(reason)

    async def _end(self, process: Process) -> None:
        self._all.discard(process)
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ask(process: Process, question: dict[str, str]) -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    await process.stdin.drain()
    return bool(json.loads(await process.stdout.readline())["right"])
