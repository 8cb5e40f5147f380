"""One curation from its options to its files: prepare, verify, write.

Nothing is written to the output folder before every problem is decided about, but the journal of verdicts. SHA256SUMS
is written last: a folder with it is whole. A curation that could not ask a judge about everything raises
SandboxUnavailable, writes nothing, and goes on where it stopped when it is run again.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepcoder_contracts.manifest import RunIdentity
from deepcoder_contracts.stage import JudgeEndpoint
from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.curation.filters import Settings
from deepcoder_trainer.curation.journal import Journal
from deepcoder_trainer.curation.output import SUMS, write_sums, writing
from deepcoder_trainer.curation.prepare import Candidate, Input, Preparation, Prepared, index_evaluations
from deepcoder_trainer.curation.progress import Display
from deepcoder_trainer.curation.report import DROPPED, PAGE, REPORT, Facts, write_report
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.curation.tally import Dropped, Tally
from deepcoder_trainer.curation.verify import Verification, Verified
from deepcoder_trainer.judge.connect import open_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.ports import SandboxUnavailable
from deepcoder_trainer.problems.dataset import dataset_digest
from deepcoder_trainer.problems.files import DatasetError, data_files
from deepcoder_trainer.rollout.answers import AnswerVerifier

log = logging.getLogger(__name__)

RUN = RunIdentity(namespace="local", name="curate", uid="00000000-0000-0000-0000-000000000000")
"""In whose name judges are asked: a submission's id says all that it is judged by."""
JOURNAL = "judged.jsonl"
_SHARES = 1000


@dataclass(frozen=True)
class Named:
    """A problem set: its name, where it was named to be, and where it is on this machine."""

    name: str
    uri: str
    path: Path


@dataclass(frozen=True)
class Curation:
    """What to curate, and how."""

    inputs: Sequence[Named]
    output: Path
    settings: Settings = field(default_factory=Settings)
    evaluations: Sequence[Named] = ()
    tokenizer: Any = None
    tokenizer_uri: str | None = None
    pass_rates: Mapping[str, float] | None = None
    pass_rates_uri: str | None = None
    split: str = "train"
    state: Path | None = None
    """Where the journal and the spool lie. Default: `state` below the output."""


def curate(curation: Curation, judge: JudgeEndpoint, local: LocalJudge | None, display: Display) -> dict[str, Any]:
    """Do all of it; what report.json holds.

    Raises DatasetError for data that cannot be used, BadConfig for settings, SandboxUnavailable without judges.
    """
    state = curation.state or curation.output / "state"
    seconds: dict[str, float] = {}
    tally = Tally()
    with closing(Spool(state)) as spool, closing(Journal(state / JOURNAL)) as journal:
        began = time.monotonic()
        prepared = _prepare(curation, tally, spool, display)
        seconds["prepare"] = time.monotonic() - began
        log.info("%d of %d problems are left to verify", len(prepared.candidates), sum(tally.read.values()))
        began = time.monotonic()
        verified = asyncio.run(_verify(curation, judge, local, prepared, journal, spool, display))
        seconds["verify"] = time.monotonic() - began
        if verified.unjudged:
            raise SandboxUnavailable(
                f"no judge could say anything of {len(verified.unjudged)} problems. What was judged is kept in "
                f"{state / JOURNAL}: run the same command again to go on"
            )
        began = time.monotonic()
        return _write(curation, tally, prepared, verified, spool, display, seconds, began)


def _prepare(curation: Curation, tally: Tally, spool: Spool, display: Display) -> Prepared:
    phase = display.phase("prepare", _SHARES)
    evaluations = index_evaluations([Input(e.name, e.path) for e in curation.evaluations], curation.settings)
    preparation = Preparation(
        curation.settings,
        tally,
        spool,
        evaluations=evaluations,
        tokenizer=curation.tokenizer,
        pass_rates=curation.pass_rates,
        split=curation.split,
    )
    inputs = [Input(i.name, i.path) for i in curation.inputs]
    prepared = preparation.run(inputs, lambda share: phase.reach(int(share * _SHARES)))
    phase.reach(_SHARES)
    return prepared


async def _verify(
    curation: Curation,
    settings: JudgeEndpoint,
    local: LocalJudge | None,
    prepared: Prepared,
    journal: Journal,
    spool: Spool,
    display: Display,
) -> Verified:
    phase = display.phase("verify", len(prepared.clusters))
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(open_judge(settings, RUN, local))
        answers = AnswerVerifier()
        stack.push_async_callback(answers.close)
        beside = asyncio.create_task(judge.run())
        work = asyncio.create_task(
            Verification(judge, answers, journal, spool, curation.settings).run(
                prepared.candidates, prepared.clusters, phase.step
            )
        )
        try:
            await asyncio.wait({beside, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and (error := beside.exception()) is not None:
                raise error
            return await work
        finally:
            for task in (beside, work):
                task.cancel()
            await asyncio.gather(beside, work, return_exceptions=True)


def _write(
    curation: Curation,
    tally: Tally,
    prepared: Prepared,
    verified: Verified,
    spool: Spool,
    display: Display,
    seconds: dict[str, float],
    began: float,
) -> dict[str, Any]:
    for refused in verified.refused:
        c = prepared.candidates[refused.index]
        tally.drop(Dropped(c.id, c.source, c.place, refused.filter, refused.reason, c.excerpt))
    if not verified.kept:
        counts = {s: dict(c) for s, c in tally.by_filter.items()}
        raise DatasetError(f"no problem is left: the filters dropped all {sum(tally.read.values())} ({counts})")
    folder = curation.output
    (folder / SUMS).unlink(missing_ok=True)  # from here on what is there is of two curations
    phase = display.phase("write", len(verified.kept))
    kept: list[Candidate] = []
    with writing(folder, curation.split) as writer:
        for decision in verified.kept:
            candidate = prepared.candidates[decision.index]
            record = spool.read(candidate.span)
            solution = None if decision.solution is None else record.solutions[decision.solution]
            noted = {} if candidate.pass_rate is None else {"pass_rate": candidate.pass_rate}
            writer.add(record, solution, {**noted, "verified": decision.solution is not None})
            kept.append(candidate)
            tally.kept[candidate.source] += 1
            tally.unverified[candidate.source] += decision.solution is None
            phase.step()
        sums = writer.commit()
        left_out = writer.left_out
    seconds["write"] = time.monotonic() - began
    facts = Facts(
        settings=_plain(asdict(curation.settings) | {"split": curation.split}),
        inputs=[_described(i) | {"layouts": prepared.layouts.get(i.name, [])} for i in curation.inputs],
        evaluations=[_described(e) for e in curation.evaluations],
        tokenizer=curation.tokenizer_uri,
        pass_rates=curation.pass_rates_uri,
        files=sums,
        parquet_left_out=left_out,
        judging={"judged": verified.judged, "known": verified.known},
        seconds={name: round(value, 2) for name, value in seconds.items()},
        without_pass_rate=prepared.without_rate if curation.pass_rates is not None else None,
    )
    values = write_report(folder, tally, kept, facts)
    write_sums(folder, sums | {name: file_sha256(folder / name) for name in (REPORT, PAGE, DROPPED)})
    return values


def _described(named: Named) -> dict[str, Any]:
    digest = dataset_digest(named.path, data_files(named.path))
    return {"name": named.name, "uri": named.uri, "sha256": digest}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime.date) else v for k, v in values.items()}
