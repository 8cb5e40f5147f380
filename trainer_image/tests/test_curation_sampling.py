"""Pass rates of a model: each response once, whatever is killed; and journals that outlive the machine."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation_world import mathematics_row, own_row

from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore, StoredObject
from deepcoder_trainer.curation import journal_storage
from deepcoder_trainer.curation.journal import Journal
from deepcoder_trainer.curation.journal_storage import FileLog, StoredLog
from deepcoder_trainer.curation.prepare import Candidate
from deepcoder_trainer.curation.rates import Rates
from deepcoder_trainer.curation.sampling import Asked, PassRates
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.problems.readers import reader_for
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Outcome, Problem, WeightRefs

ASKED = Asked(model="m", model_digest="sha256:1", precision="bfloat16", samples=4, max_tokens=32)


class Words:
    """A tokenizer: a number a word."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


class Scripted:
    """A sampler that answers with the request's seed, and ends everything after `most` responses."""

    def __init__(self, most: int = 10**9) -> None:
        self.requests: list[GenerationRequest] = []
        self.most = most

    async def generate(self, request: GenerationRequest) -> Generation:
        await asyncio.sleep(0)
        if len(self.requests) >= self.most:
            raise RuntimeError("the engine is gone")
        self.requests.append(request)
        none = np.zeros(0, np.float32)
        return Generation(none.astype(np.int32), none, Finish.STOP, f"{request.seed}", ())

    async def update_weights(self, refs: WeightRefs, version: int) -> None: ...

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None: ...


class Judged:
    """Half of the responses to each problem are right, but for `easy` and `hard`; `down`: no judge can say."""

    def __init__(self, down: str = "") -> None:
        self.count: Counter[str] = Counter()
        self.down = down

    async def __call__(self, problem: Problem, response: str, key: str) -> Outcome:
        await asyncio.sleep(0)
        self.count[problem.id] += 1
        if problem.id == self.down:
            return Outcome(None, "error", 0.0)
        right = {"easy": True, "hard": False}.get(problem.id, self.count[problem.id] % 2 == 0)
        return Outcome(float(right), "passed" if right else "wrong_answer", 0.1)


class World:
    def __init__(self, folder: Path, *ids: str) -> None:
        self.folder = folder
        self.spool = Spool(folder)
        rows = [own_row(id=name, prompt=f"Problem {name}.") for name in ids]
        rows += [mathematics_row()]
        self.candidates = []
        for number, row in enumerate(rows):
            record = reader_for(row)[1](row, "math").at("f", number, "train")
            self.candidates.append(
                Candidate(record.id, record.source, "f", "", self.spool.append(record), 5, None, None)
            )

    async def rates(self, sampler: Scripted, reward: Judged, asked: Asked = ASKED) -> Rates:
        journal = Journal(FileLog(self.folder / "sampled.jsonl"))
        try:
            done: list[int] = []
            pass_rates = PassRates(asked, sampler, reward, Words(), journal)
            rates = await pass_rates.of(self.spool, self.candidates, lambda: done.append(1))
            assert len(done) == len(self.candidates)
            return rates
        finally:
            journal.close()


async def test_rates_are_the_share_of_right_responses_and_say_how_they_were_made(tmp_path: Path) -> None:
    world, sampler = World(tmp_path, "easy", "half", "hard"), Scripted()
    rates = await world.rates(sampler, Judged())
    assert rates.rates == {"easy": 1.0, "half": 0.5, "hard": 0.0, "math-train-3": 0.5}
    assert rates.facts() | {"sampled": 16, "known": 0, "samples": 4, "model": "m"} == rates.facts()
    assert len({r.seed for r in sampler.requests}) == 16, "no two responses are the same draw"
    assert all((r.max_tokens, r.temperature, r.top_p) == (32, 0.6, 1.0) for r in sampler.requests)
    assert (await world.rates(Scripted(most=0), Judged())).rates == rates.rates, "the journal says the same"


async def test_no_response_is_sampled_twice_and_more_samples_go_on_from_fewer(tmp_path: Path) -> None:
    world, first = World(tmp_path, "half", "easy"), Scripted(most=5)
    with pytest.raises(RuntimeError, match="the engine is gone"):
        await world.rates(first, Judged())
    kept = len((tmp_path / "sampled.jsonl").read_text().splitlines())
    second = Scripted()
    rates = await world.rates(second, Judged())
    assert (rates.known, rates.sampled) == (kept, 12 - kept)
    assert 0 < kept <= 5
    assert len({r.request_id for r in second.requests}) == 12 - kept
    more = Scripted()
    rates = await world.rates(more, Judged(), replace(ASKED, samples=6))
    assert (rates.known, rates.sampled) == (12, 6)
    again = Scripted()
    await world.rates(again, Judged(), replace(ASKED, model="elsewhere"))
    assert not again.requests, "where the model lies decides nothing"


@pytest.mark.parametrize(
    "change",
    [{"model_digest": "sha256:2"}, {"temperature": 1.0}, {"top_p": 0.9}, {"max_tokens": 64}, {"seed": 1}],
    ids=lambda change: next(iter(change)),
)
async def test_another_model_or_setting_is_another_question(tmp_path: Path, change: dict[str, Any]) -> None:
    world = World(tmp_path, "half")
    await world.rates(Scripted(), Judged())
    rates = await world.rates(Scripted(), Judged(), replace(ASKED, **change))
    assert (rates.known, rates.sampled) == (0, 8)


async def test_one_response_in_a_hundred_that_no_judge_could_judge_does_not_count(tmp_path: Path) -> None:
    class Once(Judged):
        async def __call__(self, problem: Problem, response: str, key: str) -> Outcome:
            self.count["asked"] += 1
            if self.count["asked"] == 1:
                return Outcome(None, "error", 0.0)
            return await super().__call__(problem, response, key)

    rates = await World(tmp_path, "easy").rates(Scripted(), Once(), replace(ASKED, samples=50))
    assert (rates.sampled, rates.rates["easy"]) == (99, 1.0)


async def test_responses_that_no_judge_could_judge_are_asked_for_again(tmp_path: Path) -> None:
    world = World(tmp_path, "half")
    with pytest.raises(SandboxUnavailable, match="judges failed on 4 of 8 responses, more than 1%"):
        await world.rates(Scripted(), Judged(down="half"))
    rates = await world.rates(Scripted(), Judged())
    assert (rates.known, rates.sampled) == (4, 4)


# --- journals in storage


class Counting:
    """A store that counts puts, and fails the first `failing` of them."""

    def __init__(self, store: ObjectStore, failing: int = 0) -> None:
        self.store, self.puts, self.failing = store, 0, failing
        self.uri = store.uri

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> StoredObject:
        self.puts += 1
        if self.puts <= self.failing:
            raise StorageUnavailable("no answer")
        return self.store.put_bytes(key, data, if_absent=if_absent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def known(store: Any, keys: Sequence[str]) -> list[bool | None]:
    journal = Journal(StoredLog(store, "journal", "reader"))
    return [journal.get(key) for key in keys]


@pytest.mark.parametrize("kind", ["file", pytest.param("s3", marks=pytest.mark.s3)])
async def test_a_verdict_is_in_storage_when_it_is_kept(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_storage, "PUT_SECONDS", 0.02)
    monkeypatch.setattr(journal_storage, "PAGE_LINES", 8)
    if kind == "s3":
        server = request.getfixturevalue("s3")
        made = open_storage(f"s3://{server.bucket}/{tmp_path.name}", server.endpoint)
    else:
        made = open_storage(f"file://{tmp_path}/store")
    store = Counting(made)
    journal = Journal(StoredLog(store, "journal", "a001"))  # type: ignore[arg-type]

    async def put(number: int) -> None:
        await journal.put(f"k{number}", number % 2 == 0, 0.5)
        assert f'"k{number}"' in "".join(made.get_bytes(o.key).decode() for o in made.list("journal/"))

    for start in range(0, 40, 10):
        await asyncio.gather(*(put(n) for n in range(start, start + 10)))
    assert store.puts < 20, "one put serves what came meanwhile"
    assert len(made.list("journal/")) >= 3, "a page that is full is followed by another"
    other = Journal(StoredLog(store, "journal", "a002"))  # type: ignore[arg-type]
    await other.put("more", True, 0.1)
    assert known(store, ["k2", "k3", "more", "no"]) == [True, False, True, None]


async def test_storage_that_is_away_for_a_moment_costs_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcoder_trainer.checkpoint.transfer._BACKOFF_SECONDS", 0.0)
    made = open_storage(f"file://{tmp_path}/store")
    journal = Journal(StoredLog(Counting(made, failing=2), "journal", "a"))  # type: ignore[arg-type]
    await journal.put("k", True, 0.1)
    assert known(made, ["k"]) == [True]
    journal = Journal(StoredLog(Counting(made, failing=9), "journal", "b"))  # type: ignore[arg-type]
    with pytest.raises(StorageUnavailable):
        await journal.put("lost", True, 0.1)
    assert journal.get("lost") is None
    assert known(made, ["lost"]) == [None]


def test_an_object_that_is_no_journal_is_named(tmp_path: Path) -> None:
    made = open_storage(f"file://{tmp_path}/store")
    made.put_bytes("journal/a-00000.jsonl", json.dumps({"key": "k", "passed": True}).encode() + b"\nnotes\n")
    with pytest.raises(BadConfig, match=r"journal/a-00000\.jsonl:2: not a journal of verdicts"):
        Journal(StoredLog(made, "journal", "b"))
