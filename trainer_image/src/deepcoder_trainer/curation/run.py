"""One curation from request to files: prepare, verify, write.

Until every problem is decided, nothing but the journal of verdicts is written to the output folder. SHA256SUMS is
written last, so a folder that has it is complete. If some problems could not be judged, the curation raises
SandboxUnavailable and writes nothing; run again, it continues where it stopped.

It is started by the command (cli.py), and by a run before it trains (stage.py).
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deepcoder_contracts.curation import Layout
from deepcoder_trainer.background import abandonable
from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.curation.filters import PASS_RATE, Settings, out_of_reach
from deepcoder_trainer.curation.journal import Journal
from deepcoder_trainer.curation.output import JSONL, PARQUET, SUMS, write_sums, writing
from deepcoder_trainer.curation.prepare import Candidate, Input, Preparation, Prepared, index_evaluations
from deepcoder_trainer.curation.progress import Display
from deepcoder_trainer.curation.rates import Measured, Rates
from deepcoder_trainer.curation.report import DROPPED, PAGE, PICTURES, REPORT, Facts, write_report
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.curation.tally import Dropped, Tally
from deepcoder_trainer.curation.verify import Kept, Refused, Verification, Verified
from deepcoder_trainer.judge.backend import Judge
from deepcoder_trainer.problems.dataset import dataset_digest
from deepcoder_trainer.problems.files import DatasetError, data_files
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.rollout.answers import AnswerVerifier

log = logging.getLogger(__name__)

FILES = (JSONL, PARQUET, REPORT, PAGE, DROPPED, *PICTURES, SUMS)
"""Files that a curation writes, SHA256SUMS last. Pictures need matplotlib."""
_SHARES = 1000


@dataclass(frozen=True)
class Named:
    """A problem set with its name, its URI, and its path on this machine."""

    name: str
    uri: str
    path: Path
    splits: Sequence[str]
    """Splits to read if the folder has several."""
    layout: Layout | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files that are read, hexadecimal."""
        return dataset_digest(self.path, data_files(self.path, self.splits))

    def opened(self) -> Input:
        """Return the input for reading."""
        return Input(self.name, self.path, self.layout, self.splits)


@dataclass(frozen=True)
class Curation:
    """What to curate, and how."""

    inputs: Sequence[Named]
    output: Path
    state: Path
    """Folder for the spool of records."""
    settings: Settings = field(default_factory=Settings)
    evaluations: Sequence[Named] = ()
    tokenizer: Any = None
    tokenizer_uri: str | None = None
    pass_rates: Measured | None = None
    """Pass rates that were measured before."""
    pass_rates_uri: str | None = None
    split: str = "train"


RatesOf = Callable[[Spool, Sequence[Candidate]], Awaitable[Rates]]
"""Measures the pass rates of verified candidates."""


@dataclass(frozen=True)
class Means:
    """The services that a curation uses. The caller closes them."""

    judge: Judge
    answers: AnswerVerifier
    journal: Journal
    display: Display
    rates: RatesOf | None = None
    """Measures pass rates of a model on the problems that all other filters leave; None: no model is sampled."""


async def curate(curation: Curation, means: Means) -> dict[str, Any]:
    """Run a curation. Return the content of report.json.

    Blocking work runs in threads, so it may be cancelled at any time. Raises DatasetError for unusable data, and
    SandboxUnavailable if problems could not be judged.
    """
    seconds: dict[str, float] = {}
    tally = Tally()
    with closing(Spool(curation.state)) as spool:
        began = time.monotonic()
        prepared = await abandonable(_prepare, curation, tally, spool, means.display)
        seconds["prepare"] = time.monotonic() - began
        log.info("%d of %d problems are left to verify", len(prepared.candidates), sum(tally.read.values()))
        began = time.monotonic()
        verified = await _verify(curation, means, prepared, spool)
        seconds["verify"] = time.monotonic() - began
        if verified.unjudged:
            raise SandboxUnavailable(
                f"{len(verified.unjudged)} problems could not be judged. Verdicts so far are kept in "
                f"{means.journal.where}: run it again to continue"
            )
        rates = None
        if means.rates is not None:
            began = time.monotonic()
            rates = await means.rates(spool, [prepared.candidates[k.index] for k in verified.kept])
            seconds["sample"] = time.monotonic() - began
        began = time.monotonic()
        decided = _decided(curation, prepared, verified, rates)
        return await abandonable(_write, curation, tally, prepared, decided, spool, means.display, seconds, began)


def _prepare(curation: Curation, tally: Tally, spool: Spool, display: Display) -> Prepared:
    phase = display.phase("prepare", _SHARES)
    evaluations = index_evaluations([e.opened() for e in curation.evaluations], curation.settings)
    preparation = Preparation(
        curation.settings,
        tally,
        spool,
        evaluations=evaluations,
        tokenizer=curation.tokenizer,
        pass_rates=curation.pass_rates,
        split=curation.split,
    )
    inputs = [i.opened() for i in curation.inputs]
    prepared = preparation.run(inputs, lambda share: phase.reach(int(share * _SHARES)))
    phase.reach(_SHARES)
    return prepared


async def _verify(curation: Curation, means: Means, prepared: Prepared, spool: Spool) -> Verified:
    means.journal.judged_by(await means.judge.version())
    phase = means.display.phase("verify", len(prepared.clusters))
    verification = Verification(means.judge, means.answers, means.journal, spool, curation.settings)
    return await verification.run(prepared.candidates, prepared.clusters, phase.step)


@dataclass(frozen=True)
class _Decided:
    """The decision on every candidate."""

    kept: Sequence[Kept]
    refused: Sequence[Refused]
    judging: Mapping[str, int]
    rates: Rates | None


def _decided(curation: Curation, prepared: Prepared, verified: Verified, rates: Rates | None) -> _Decided:
    """Drop verified problems that the model solves too often or too seldom."""
    judging = {"judged": verified.judged, "known": verified.known}
    if rates is None:
        return _Decided(verified.kept, verified.refused, judging, None)
    kept, refused = [], list(verified.refused)
    for decision in verified.kept:
        rate = rates.rates.get(prepared.candidates[decision.index].id)
        reason = None if rate is None else out_of_reach(rate, curation.settings)
        if reason is None:
            kept.append(decision)
        else:
            refused.append(Refused(decision.index, PASS_RATE, reason))
    return _Decided(kept, refused, judging, rates)


def _write(
    curation: Curation,
    tally: Tally,
    prepared: Prepared,
    decided: _Decided,
    spool: Spool,
    display: Display,
    seconds: dict[str, float],
    began: float,
) -> dict[str, Any]:
    for each in decided.refused:
        c = prepared.candidates[each.index]
        tally.drop(Dropped(c.id, c.source, c.place, each.filter, each.reason, c.excerpt))
    if not decided.kept:
        counts = {s: dict(c) for s, c in tally.by_filter.items()}
        first = "; ".join(f"{name}: {each[0].place}: {each[0].reason}" for name, each in tally.examples.items())
        raise DatasetError(
            f"no problem is left: the filters dropped all {sum(tally.read.values())} ({counts}), the first of each "
            f"filter: {first}"
        )
    rates = decided.rates
    folder = curation.output
    (folder / SUMS).unlink(missing_ok=True)  # from now on, files of two curations may be mixed
    phase = display.phase("write", len(decided.kept))
    kept: list[Candidate] = []
    with writing(folder, curation.split) as writer:
        for decision in decided.kept:
            candidate = prepared.candidates[decision.index]
            record = spool.read(candidate.span)
            solution = None if decision.solution is None else record.solutions[decision.solution]
            if rates is not None:
                candidate = replace(candidate, pass_rate=rates.rates.get(candidate.id))
            noted = {} if candidate.pass_rate is None else {"pass_rate": candidate.pass_rate}
            writer.add(record, solution, {**noted, "verified": decision.solution is not None})
            kept.append(candidate)
            tally.kept[candidate.source] += 1
            tally.unverified[candidate.source] += decision.solution is None
            phase.step()
        sums = writer.commit()
        left_out = writer.left_out
    without = None
    if rates is not None:
        without = sum(c.id not in rates.rates for c in kept)
    elif curation.pass_rates is not None:
        without = prepared.without_rate
    seconds["write"] = time.monotonic() - began
    facts = Facts(
        settings=_plain(asdict(curation.settings) | {"split": curation.split}),
        inputs=[_described(i) | {"layouts": prepared.layouts.get(i.name, [])} for i in curation.inputs],
        evaluations=[_described(e) for e in curation.evaluations],
        tokenizer=curation.tokenizer_uri,
        pass_rates=curation.pass_rates_uri,
        sampled=None if rates is None else rates.facts(),
        files=sums,
        parquet_left_out=left_out,
        judging=decided.judging,
        seconds={name: round(value, 2) for name, value in seconds.items()},
        without_pass_rate=without,
    )
    values = write_report(folder, tally, kept, facts)
    beside = [name for name in (REPORT, PAGE, DROPPED, *PICTURES) if (folder / name).is_file()]
    write_sums(folder, sums | {name: file_sha256(folder / name) for name in beside})
    return values


def _described(named: Named) -> dict[str, Any]:
    return {"name": named.name, "uri": named.uri, "sha256": named.digest}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime.date) else v for k, v in values.items()}
