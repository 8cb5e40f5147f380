"""Compares a model's final answer with the right one, without trusting the model's mathematics.

Answers with the same text are equal. Others go to a verifier process (`answer_worker`), as many at once as there are
CPUs. An answer is wrong if its comparison takes more than `CPU_SECONDS`, fails, or ends the process twice. A possible
fault of the machine does not count against the answer: if a process does not start, is killed from outside, or does not
get its CPU time within `WALL_SECONDS`, the comparison is repeated in another process. After `TRIES` there is no
outcome, and the sample is quarantined.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process

from deepcoder_contracts.cpus import cpu_limit
from deepcoder_contracts.judge import Verdict
from deepcoder_trainer.problems.answers import same_text
from deepcoder_trainer.problems.rows import LONGEST_ANSWER

log = logging.getLogger(__name__)

MOST_PARALLEL = 16
"""Largest number of processes, regardless of CPUs. Each uses 0.1 GiB, and at most 2 GiB."""
CPU_SECONDS = 10.0
WALL_SECONDS = 120.0
TRIES = 3
START_SECONDS = 120.0
"""Deadline for a process to start. Importing sympy takes 2 s on an idle machine."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV")
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
"""Signals that no comparison causes: the machine is out of memory, or the process was killed from outside."""


class NoVerifier(Exception):
    """The verifier failed, not the answer."""


class _Died(Exception):
    """The process ended or gave an invalid reply, because of its input or by chance."""


class AnswerVerifier:
    """Compares answers. It starts processes on demand."""

    def __init__(
        self, command: tuple[str, ...] = (sys.executable, "-m", "deepcoder_trainer.rollout.answer_worker")
    ) -> None:
        self._command = command
        self._free = asyncio.Semaphore(min(MOST_PARALLEL, cpu_limit()))
        self._idle: list[Process] = []
        self._all: set[Process] = set()
        self._unread: set[str] = set()
        self._told = False

    async def compare(self, gold: str, given: str) -> Verdict:
        """Return passed, wrong_answer, time_limit, runtime_error (comparison failed), or error (verifier failed)."""
        if same_text(gold, given):
            return Verdict.PASSED
        if len(given) > LONGEST_ANSWER:
            return Verdict.WRONG_ANSWER
        verdict, gold_read = await self._tried(gold, given)
        if not gold_read and gold not in self._unread:
            self._unread.add(gold)
            log.warning(
                "the verifier cannot read the right answer %r as mathematics, so only the same text is right; this "
                "holds for %d problems so far: drop them with `deepcoder-trainer curate`",
                gold,
                len(self._unread),
            )
        return verdict

    async def reads(self, gold: str) -> bool | None:
        """Whether a gold answer can be read as mathematics and compared within the limits; None: no verifier."""
        verdict, gold_read = await self._tried(gold, gold)
        return None if verdict is Verdict.ERROR else gold_read and verdict is Verdict.PASSED

    async def close(self) -> None:
        """End all processes."""
        for process in list(self._all):
            await self._end(process)
        self._idle.clear()

    async def _tried(self, gold: str, given: str) -> tuple[Verdict, bool]:
        """Compare with retries. Return the verdict and whether `gold` was read; true if that is unknown."""
        async with self._free:
            died, reason = False, ""
            for _ in range(TRIES):
                try:
                    return await self._once(gold, given)
                except _Died as error:
                    if died:
                        return Verdict.RUNTIME_ERROR, True
                    died, reason = True, str(error)
                except NoVerifier as error:
                    reason = str(error)
                log.warning("comparing an answer again: %s", reason)
        log.error("an answer could not be compared in %d tries, the last one: %s", TRIES, reason)
        return Verdict.ERROR, True

    async def _once(self, gold: str, given: str) -> tuple[Verdict, bool]:
        """Compare in one process. Raises NoVerifier or _Died."""
        process = await self._process()
        try:
            async with asyncio.timeout(WALL_SECONDS):
                answer = await _ask(process, {"gold": gold, "given": given, "cpu_seconds": CPU_SECONDS})
                if answer is None:
                    return _end_of(await process.wait()), True
            if "broke" in answer:
                return Verdict.RUNTIME_ERROR, True
            verdict, gold_read = Verdict.PASSED if answer["right"] else Verdict.WRONG_ANSWER, bool(answer["gold_read"])
            self._idle.append(process)
            return verdict, gold_read
        except TimeoutError:
            raise NoVerifier(
                f"the verifier gave no answer within {WALL_SECONDS:.0f} s and used less than {CPU_SECONDS:.0f} s of "
                "CPU time: the machine has too few CPUs for what runs on it"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise _Died(f"the verifier's reply cannot be read ({error!r})") from error
        finally:
            if process not in self._idle:
                await self._end(process)

    async def _process(self) -> Process:
        """Return an idle process, or start one. Idle processes that have ended are discarded."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
            log.warning("a verifier ended with status %s while it had nothing to do", process.returncode)
            self._all.discard(process)
        return await self._start()

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
                if ready := await process.stdout.readline():
                    self._tell_of(b'"confined": false' not in ready)
                    return process
            reason = f"the verifier ended with status {await process.wait()}: is math-verify installed?"
        except TimeoutError:
            reason = f"the verifier did not start within {START_SECONDS:.0f} s"
        except BaseException:
            await self._end(process)
            raise
        await self._end(process)
        raise NoVerifier(reason)

    def _tell_of(self, confined: bool) -> None:
        if not confined and not self._told:
            self._told = True
            log.warning("the verifier of mathematics is not confined: this kernel has no Landlock, or it is refused")

    async def _end(self, process: Process) -> None:
        self._all.discard(process)
        if process.returncode is None:
            process.kill()
        await process.wait()


def _end_of(status: int) -> Verdict:
    """Interpret the exit status of a process that ended during a comparison. Raises NoVerifier or _Died."""
    if status == -signal.SIGPROF:  # sent by its CPU timer
        return Verdict.TIME_LIMIT
    if status in _FROM_OUTSIDE:
        raise NoVerifier(f"the verifier was ended by signal {-status}: has the machine no memory left?")
    raise _Died(f"the verifier ended with status {status}")


async def _ask(process: Process, question: dict[str, str | float]) -> dict[str, object] | None:
    """Return the process's reply, or None if it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
        await process.stdin.drain()
        reply = await process.stdout.readline()
    except ConnectionError:
        return None
    return dict(json.loads(reply)) if reply else None
