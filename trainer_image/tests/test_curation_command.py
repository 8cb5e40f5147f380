"""The whole command with a real judge: every layout in, one set and its report out, also after it was killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import held_judges
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_world import (
    ADD,
    WRONG,
    codeforces_row,
    livecodebench_function_row,
    livecodebench_row,
    mathematics_row,
    own_row,
    synthetic_row,
    taco_function_row,
    taco_row,
    write_jsonl,
)
from judge_pods import judge_server

from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.judge import Kind
from deepcoder_trainer import samples
from deepcoder_trainer.__main__ import main
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.curation.rates import read_pass_rates
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.problems.dataset import DatasetError, load_dataset

pytestmark = pytest.mark.early

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "datasets"
"""Real problems beside the repository; they are no part of it."""


@pytest.fixture(scope="module")
def judge() -> Iterator[LocalJudge]:
    judge = LocalJudge(2)
    yield judge
    judge.close()


@pytest.fixture(autouse=True)
def one_judge(judge: LocalJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all commands in this process: each judge attacks itself before it is ready, for seconds."""
    monkeypatch.setattr("deepcoder_trainer.judge.local.LocalJudge", lambda *_: judge)
    monkeypatch.setattr(judge, "close", lambda: None)


@pytest.fixture
def sets(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes small sets and names them as the command takes them."""

    def write(**rows: list[dict[str, Any]]) -> list[str]:
        return [f"{name}={write_jsonl(tmp_path / 'sets' / f'{name}.jsonl', r)}" for name, r in rows.items()]

    return write


def report_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text())


def test_every_layout_comes_out_as_one_set(tmp_path: Path, sets: Callable[..., list[str]]) -> None:
    inputs = sets(
        taco=[
            taco_row(),
            taco_function_row(),
            taco_row(question=f"Again: {ADD}"),
            taco_row(question=" "),
            taco_row(question="Too few.", input_output=json.dumps({"inputs": ["1"], "outputs": ["1"]})),
            taco_row(question="No official program is right here.", solutions=[WRONG]),
            taco_row(question=codeforces_row()["problem"]),
        ],
        synthetic=[synthetic_row(), synthetic_row(language="rust"), synthetic_row(verification_info="{")],
        lcb=[livecodebench_row(), livecodebench_function_row(), livecodebench_row(date="2025-01-01")],
        mine=[own_row()],
    )
    output = tmp_path / "out"
    against = sets(codeforces=[codeforces_row()])
    assert main(["curate", *inputs, "--against", *against, "--until", "2024-08-01", "--output-dir", str(output)]) == 0

    report = report_of(output)
    assert report["kept"] == {"taco": 2, "primeintellect": 1, "livecodebench": 2, "mine": 1}
    assert report["kept_unverified"] == {"taco": 0, "primeintellect": 0, "livecodebench": 2, "mine": 0}
    assert report["dropped"]["taco"] == {
        "empty_statement": 1,
        "few_tests": 1,
        "contaminated": 1,
        "near_duplicate": 1,
        "solution_fails": 1,
    }
    assert report["dropped"]["synthetic"] == {"unreadable": 1, "unwanted": 1}
    assert report["dropped"]["livecodebench"] == {"date_window": 1}
    assert report["read"] == {"taco": 7, "primeintellect": 1, "synthetic": 2, "livecodebench": 3, "mine": 1}
    assert sum(report["read"].values()) == sum(report["kept"].values()) + len(
        (output / "dropped.jsonl").read_text().splitlines()
    )

    own, published = load_dataset(output / "problems.jsonl"), load_dataset(output / "problems.parquet")
    assert [p.id for p in own.problems] == [
        "taco-train-0",
        "taco-train-1",
        "primeintellect-train-0",
        "livecodebench-train-0",
        "livecodebench-train-1",
        "mine-1",
    ]
    assert [p.tests for p in own.problems] == [p.tests for p in published.problems]
    assert [p.kind for p in published.problems] == [p.kind for p in own.problems]
    assert own.problems[1].kind is Kind.FUNCTION
    for line in (output / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == digest
    page = (output / "report.md").read_text()
    assert "6 of 14 problems are kept" in page
    assert "100% of its statement is in codeforces" in page
    assert (output / "counts.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "shapes.png").read_bytes().startswith(b"\x89PNG")

    verdicts = (output / "state" / "judged.jsonl").read_text()
    assert main(["curate", *inputs, "--against", *against, "--until", "2024-08-01", "--output-dir", str(output)]) == 0
    assert (output / "state" / "judged.jsonl").read_text() == verdicts
    assert report_of(output)["judging"] == {"judged": 0, "known": 6}
    assert report_of(output)["files"] == report["files"], "the same inputs give the same bytes"


def test_a_curation_that_is_killed_judges_nothing_twice(
    tmp_path: Path, sets: Callable[..., list[str]], scratch: Path
) -> None:
    slow = "import time; time.sleep(0.02)\nprint(sum(map(int, input().split())))"
    rows = [
        taco_row(question=f"Problem number {n}: {ADD}" + f" word{n}" * 40, solutions=[f"{slow}  # {n}"])
        for n in range(40)
    ]
    inputs, output = sets(taco=rows), tmp_path / "out"
    program = ["deepcoder_trainer", "curate", *inputs, "--output-dir", str(output)]
    journal = output / "state" / "judged.jsonl"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    for least, judged, end, status in (  # ended once so many are known; judges answer so many more
        (3, 5, signal.SIGKILL, -signal.SIGKILL),
        (12, 10, signal.SIGTERM, ExitCode.DRAINED),
        (25, 15, signal.SIGINT, ExitCode.DRAINED),
    ):
        command = [sys.executable, held_judges.__file__, str(judged), *program]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        deadline = time.monotonic() + 120
        try:
            while not journal.exists() or len(journal.read_bytes().splitlines()) < least:
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline, "waiting for verdicts in the journal"
                time.sleep(0.01)
            process.send_signal(end)
            assert process.wait(120) == status, (tmp_path / "log").read_text()
        finally:
            process.kill()  # it would wait for its judges for ever
            process.wait()
        assert not (output / "SHA256SUMS").exists()
        if end is signal.SIGKILL:
            assert list(scratch.glob("deepcoder-curate-*")), "so the next one has something to remove"
        else:
            assert "stopped; run the same command again to continue" in (tmp_path / "log").read_text()
            assert not list(scratch.glob("deepcoder-*")), "a stopped command leaves nothing, nor what a killed one left"
    before = journal.read_text().splitlines()
    command = [sys.executable, "-m", *program]
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment).returncode == 0
    assert not list(scratch.glob("deepcoder-*"))
    after = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert [json.loads(line)["key"] for line in before if line.endswith("}")] == after[: len(before)]
    assert max(Counter(after).values()) == 1
    assert len(after) == 40
    report = report_of(output)
    assert report["kept"] == {"taco": 40}
    assert report["judging"]["known"] >= 25
    assert report["judging"]["judged"] == 40 - report["judging"]["known"]


def test_prompts_are_measured_by_the_models_tokenizer(
    tmp_path: Path, sets: Callable[..., list[str]], tiny_tokenizer: Path
) -> None:
    inputs = sets(mine=[own_row(id="short"), own_row(id="long", prompt="Unlike: " + "very " * 300 + "long.")])
    output = tmp_path / "out"
    options = ["--tokenizer", str(tiny_tokenizer), "--max-prompt-tokens", "100", "--output-dir", str(output)]
    assert main(["curate", *inputs, *options]) == 0
    report = report_of(output)
    assert report["dropped"]["mine"] == {"long_prompt": 1}
    assert report["examples"]["long_prompt"][0]["reason"] == "304 tokens, at most 100"
    assert report["prompt_tokens"]["max"] < 100


@pytest.fixture
def tiny_tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.mark.s3
def test_sets_are_read_from_s3_judged_by_a_pool_and_put_in_s3_with_their_journal(
    tmp_path: Path, sets: Callable[..., list[str]], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # downloads are kept below it
    [local] = sets(taco=[taco_row()])
    open_storage(f"s3://{s3.bucket}/sets", s3.endpoint).put_file("t.jsonl", Path(local.partition("=")[2]))
    token, uri = tmp_path / "token", f"s3://{s3.bucket}/{tmp_path.name}/out"
    token.write_text("secret" * 8)
    source = f"taco=s3://{s3.bucket}/sets/t.jsonl"
    output = open_storage(uri, s3.endpoint)
    for judging in ({"judged": 2, "known": 0}, {"judged": 0, "known": 2}):
        with judge_server(token) as server:
            options = ["--judge", f"{server.address}:{server.port}", "--judge-token-file", str(token)]
            assert main(["curate", source, "--s3-endpoint", s3.endpoint, *options, "--output-dir", uri]) == 0
        report = json.loads(output.get_bytes("report.json"))
        assert report["kept"] == {"taco": 1}
        assert report["judging"] == judging, "the journal lies beside the set, and any machine goes on from it"
        assert report["inputs"][0]["uri"] == source.partition("=")[2]
        assert len(output.list("state/judged/")) == 1
    sums = output.get_bytes("SHA256SUMS").decode().splitlines()
    assert {line.split("  ")[1] for line in sums} >= {"problems.jsonl", "problems.parquet", "report.md", "counts.png"}
    assert all(output.sha256(name)[1] == digest for digest, name in (line.split("  ") for line in sums))


def test_what_a_model_always_or_never_solves_is_dropped(tmp_path: Path, sets: Callable[..., list[str]]) -> None:
    rows = [own_row(id=f"p{n}", prompt=f"Problem {n}: " + f"word{n} " * 30) for n in range(4)]
    table = [
        {"problem_id": f"p{n}", "reward": reward}
        for n, rewards in enumerate([(0.0, 0.0), (1.0, 0.0, None), (1.0, 1.0)])
        for reward in rewards
    ]
    rates = tmp_path / "samples.parquet"
    pq.write_table(
        pa.Table.from_pylist(table, schema=pa.schema([samples.SCHEMA.field(f) for f in ("problem_id", "reward")])),
        rates,
    )
    output = tmp_path / "out"
    assert main(["curate", *sets(mine=rows), "--pass-rates", str(rates), "--output-dir", str(output)]) == 0
    report = report_of(output)
    assert report["dropped"]["mine"] == {"pass_rate": 2}
    assert report["without_pass_rate"] == 1
    kept = [json.loads(line) for line in (output / "problems.jsonl").read_text().splitlines()]
    assert {k["id"]: k["metadata"].get("pass_rate") for k in kept} == {"p1": 0.5, "p3": None}


def test_pass_rates_are_of_one_model_and_problems_of_one_set(tmp_path: Path) -> None:
    schema = pa.schema([samples.SCHEMA.field(f) for f in ("problem_id", "reward")])

    def write(name: str, *rewards: float) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{"problem_id": "p", "reward": r} for r in rewards], schema=schema), path)
        return path

    one = write("eval/Base/taco.parquet", 1.0, 0.0)
    write("eval/16k/taco.parquet", 1.0)
    with pytest.raises(DatasetError, match=r"samples of several models \(16k, Base\): name the folder of one"):
        read_pass_rates(tmp_path / "eval")
    assert read_pass_rates(one.parent).by_id == {"p": 0.5}
    write("eval/Base/lcb.parquet", 0.0)
    with pytest.raises(DatasetError, match=r"'p' is a problem of lcb\.parquet and of taco\.parquet"):
        read_pass_rates(one.parent)
    write("run/step-000010.parquet", 1.0)
    write("run/step-000020.parquet", 0.0)
    write("run/ahead-a001.parquet", 0.0, 0.0)
    assert read_pass_rates(tmp_path / "run").by_id == {"p": 0.25}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"x": [{"text": "?"}]}, [], "no row of x="),
        ({"x": [taco_row(question="")]}, [], "the first of each filter: empty_statement: x"),
        ({"x": [own_row()]}, ["--against", "nothing"], "--against 'nothing': write NAME=URI"),
        ({"x": [own_row()]}, ["--against", "e=/nowhere"], "--against /nowhere does not exist"),
        ({"x": [own_row()]}, ["--min-tests", "0"], "--min-tests 0"),
        ({"x": [own_row()]}, ["--since", "2024-01-01", "--until", "2024-01-01"], "--since 2024-01-01 is not before"),
        ({"x": [own_row()]}, ["--min-pass-rate", "0.5", "--max-pass-rate", "0.5"], "no rate is between them"),
        ({"x": [own_row()]}, ["--min-pass-rate", "0.1"], "need pass rates: give --pass-rates or --model"),
        ({"x": [own_row()]}, ["--max-pass-rate", "0.9"], "need pass rates: give --pass-rates or --model"),
        ({"x": [own_row()]}, ["--model", "/m", "--pass-rates", "/r"], "--model and --pass-rates: give one of them"),
        ({"x": [own_row()]}, ["--model", "/nowhere"], "model.uri /nowhere does not exist"),
        ({"x": [own_row()]}, ["--model", "/m", "--samples", "0"], "--samples 0: give a number of at least 1"),
        ({"x": [own_row()]}, ["--judge", "pool"], "--judge needs --judge-token-file"),
        ({"x": [own_row()]}, ["--pass-rates", "/nowhere"], "--pass-rates /nowhere does not exist"),
    ],
)
def test_what_cannot_work_is_told_with_the_mend(
    tmp_path: Path,
    sets: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    rows: dict[str, Any],
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["curate", *sets(**rows), *options, "--output-dir", str(tmp_path / "out")]) == 64
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("deepcoder-*"))


def test_an_evaluation_set_has_to_be_readable_whole(
    tmp_path: Path, sets: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    against = sets(codeforces=[codeforces_row(), {"problem": 7, "tests": "[]"}])
    assert main(["curate", *sets(x=[own_row()]), "--against", *against, "--output-dir", str(tmp_path / "out")]) == 64
    assert "evaluation set codeforces, codeforces.jsonl:2: problem: not a text" in capsys.readouterr().err


def test_mathematics_is_curated_by_statement_alone(tmp_path: Path, sets: Callable[..., list[str]]) -> None:
    rows = [mathematics_row(), mathematics_row(problem="What is the sum of the first ten odd numbers?", answer="100")]
    against = sets(aime=[mathematics_row(problem=mathematics_row()["problem"] + " ")])
    output = tmp_path / "out"
    assert main(["curate", *sets(deepscaler=rows), "--against", *against, "--output-dir", str(output)]) == 0
    assert report_of(output)["dropped"]["deepscaler"] == {"contaminated": 1}
    for name in ("problems.jsonl", "problems.parquet"):
        [problem] = load_dataset(output / name).problems
        assert (problem.answer, problem.tests, problem.source) == ("100", (), "deepscaler")


def test_a_set_that_is_half_replaced_has_no_sums_of_the_one_before_it(
    tmp_path: Path, sets: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["curate", *sets(deepscaler=[mathematics_row()]), "--output-dir", str(tmp_path / "out")]
    assert main(command) == 0
    assert (tmp_path / "out/SHA256SUMS").exists()

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepcoder_trainer.curation.run.write_report", full)
    assert main(command) != 0
    assert not (tmp_path / "out/SHA256SUMS").exists()


def shared_rows(name: str, count: int) -> list[dict[str, Any]]:
    """The problems with the smallest tests of a set, in our layout."""
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"there is no {path}: real problems are not part of the repository")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = sorted((r for r in rows if r["tests"]), key=lambda r: len(json.dumps(r["tests"])))
    if name == "codejam":  # some whose answers are compared as numbers
        rows.sort(key=lambda r: "." not in r["tests"][0]["output"] or len(json.dumps(r["tests"])) > 4000)
    rows = rows[:count]
    made = []
    for row in rows:
        script = row["kind"] == "function"
        tests = [{"input": t["input"], "output": t["output"]} for t in row["tests"]]
        if script:
            tests = [{"input": f"{row['test_code']}\ncheck({row['fn_name']})\n", "output": ""}]
        kind = {"kind": "script"} if script else {}
        made.append({"id": row["id"], "source": name, "prompt": row["prompt"], "tests": tests, **kind})
        if not script and row["float_tol"]:
            made[-1]["float_tolerance"] = row["float_tol"]
        made[-1] |= {"solution": row["solution"]} if not script else {"solution": row["prompt"] + row["solution"]}
    return made


def test_real_problems_are_verified_and_public_benchmarks_are_kept_out(
    tmp_path: Path, sets: Callable[..., list[str]]
) -> None:
    codejam, benchmark = shared_rows("codejam", 12), shared_rows("mbpp", 10)
    against = sets(mbpp=shared_rows("mbpp", 400), humaneval=shared_rows("humaneval", 164))
    output = tmp_path / "out"
    inputs = sets(codejam=codejam, crawled=benchmark)
    options = ["--min-tests", "1", "--output-dir", str(output)]
    assert main(["curate", *inputs, "--against", *against, *options]) == 0
    report = report_of(output)
    assert report["dropped"]["mbpp"] == {"contaminated": 10}
    assert "solution_fails" not in report["dropped"]["codejam"], "each passes, numbers within their tolerance"
    assert report["kept_unverified"]["codejam"] == 0
    assert len(load_dataset(output / "problems.jsonl").problems) == report["kept"]["codejam"]
