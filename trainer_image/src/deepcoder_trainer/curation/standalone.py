"""Runs one curation from the command line: a judge, a journal and, if a model is given, a sampler.

The output is a local folder or a place in storage (`s3://…`). For storage, the files are made in a temporary folder and
uploaded, with SHA256SUMS last. The journals are next to the output, so the command can continue from any machine. Two
commands with the same local output exclude each other. In storage they are not detected, and both judge the same
programs.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcoder_contracts.manifest import BY_HAND, RunIdentity
from deepcoder_contracts.stage import JudgeEndpoint, StageConfig
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import upload_files
from deepcoder_trainer.curation.journal import Journal
from deepcoder_trainer.curation.journal_storage import FileLog, Log, StoredLog
from deepcoder_trainer.curation.output import SUMS
from deepcoder_trainer.curation.prepare import Candidate
from deepcoder_trainer.curation.progress import Display
from deepcoder_trainer.curation.rates import Rates
from deepcoder_trainer.curation.run import FILES, Curation, Means, curate
from deepcoder_trainer.curation.sampling import Asked, PassRates
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.judge.connect import open_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.rollout.answers import AnswerVerifier
from deepcoder_trainer.rollout.reward import JudgeReward

RUN = RunIdentity(namespace=BY_HAND, name="curate", uid="00000000-0000-0000-0000-000000000000")
"""The run that judges see. It does not matter for verdicts."""
VERDICTS, RESPONSES = "judged", "sampled"
"""Names of the journals of official solutions and of a model's responses."""


@dataclass(frozen=True)
class Place:
    """Locations of output and journals."""

    output: Path
    """Local folder in which the files are made."""
    state: Path
    """Local folder for records and, without a store, for journals."""
    store: ObjectStore | None = None
    """Storage for output and journals; None: the local folders."""

    def log(self, name: str) -> Log:
        """Open the storage of a journal."""
        if self.store is None:
            return FileLog(self.state / f"{name}.jsonl")
        return StoredLog(self.store, f"state/{name}", uuid.uuid4().hex[:12])

    def put(self) -> None:
        """Upload the output to the store, if there is one, with SHA256SUMS last."""
        if self.store is None:
            return
        self.store.put_bytes(SUMS, b"# not whole: being written\n")  # until then, files of two curations may be mixed
        files = [self.output / name for name in FILES if name != SUMS and (self.output / name).is_file()]
        upload_files(self.store, "", self.output, files)
        upload_files(self.store, "", self.output, [self.output / SUMS])


@dataclass(frozen=True)
class Model:
    """The model whose pass rates are measured."""

    directory: Path
    config: StageConfig
    """Config of its engines."""
    asked: Asked


async def curate_by_hand(
    curation: Curation,
    place: Place,
    endpoint: JudgeEndpoint,
    local: LocalJudge | None,
    display: Display,
    model: Model | None,
) -> dict[str, Any]:
    """Curate, upload the output, and return the content of report.json. Raises errors of `curate` and StorageError."""
    async with AsyncExitStack() as stack:
        journal = await asyncio.to_thread(lambda: Journal(place.log(VERDICTS)))
        stack.callback(journal.close)
        judge = await stack.enter_async_context(open_judge(endpoint, RUN, local))
        answers = AnswerVerifier()
        stack.push_async_callback(answers.close)

        async def rates(spool: Spool, candidates: Sequence[Candidate]) -> Rates:
            from deepcoder_trainer.curation.engine import open_engine

            assert model is not None
            responses = await asyncio.to_thread(lambda: Journal(place.log(RESPONSES)))
            stack.callback(responses.close)
            responses.judged_by(await judge.version())
            async with open_engine(model.config, model.directory) as sampler:
                made = PassRates(model.asked, sampler, JudgeReward(judge, answers), curation.tokenizer, responses)
                return await made.of(spool, candidates, display.phase("sample", len(candidates)).step)

        means = Means(judge, answers, journal, display, rates if model is not None else None)
        beside = asyncio.create_task(judge.run())
        work = asyncio.create_task(curate(curation, means))
        try:
            await asyncio.wait({beside, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and (error := beside.exception()) is not None:
                raise error
            report = await work
        finally:
            for task in (beside, work):
                task.cancel()
            await asyncio.gather(beside, work, return_exceptions=True)
        await asyncio.to_thread(place.put)
        return report
