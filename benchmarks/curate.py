"""How long does curation take beside judging, in how much memory, and does it keep the judge busy?

    make bench-curate                      24,000 problems of 15 tests, about four minutes on two cores
    python benchmarks/curate.py --problems 2400 --programs 100

Problem sets of our own making, in the layouts and about the proportions of the published ones (TACO as Parquet,
SYNTHETIC-1 and LiveCodeBench as JSON Lines, hidden tests packed), with copies and contaminated problems among them, and
evaluation sets to check against. Two measurements:

- everything but judging: the whole command, from start to end, with a journal that has every verdict, its seconds
  (`prepare_seconds`, at most 60) and its largest resident size (`prepare_mb`, at most 2,048);
- judging: programs of known work through the command, as a share of the speed of `deepcoder-sandbox judge` on the same
  programs (`judging_ratio`, at least 0.9). The better of two turns each, in turns, since other work on the
  machine only takes away.

Exit status 1: one was missed (`unmet`) or a verdict or a count was wrong. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from page_head import commit, machine

from deepcoder_contracts.judge import JudgeRequest
from deepcoder_sandbox.server.version import judge_version
from deepcoder_trainer.curation.journal import verdict_key
from deepcoder_trainer.heavy_imports import heavy_imports
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.plain_arrow import pa, pq
from deepcoder_trainer.problems.readers import reader_for

MOST_SECONDS, MOST_MB, LEAST_SPEED = 60.0, 2048.0, 0.9
TESTS = 15
SHARES = {"taco": 0.31, "primeintellect": 0.665, "livecodebench": 0.025}
COPIES = 0.03
EVALUATION = 300
SEED = 20250408
WORK = (
    "import time\nn = int(input())\nend = time.process_time() + 0.02\nwhile time.process_time() < end: pass\nprint(n)\n"
)


class Maker:
    """Problems from a made-up language whose words are as unevenly frequent as those of a natural one."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        letters = np.array(list("etaoinshrdlucmfwygpbvk"))
        self.words = [
            "".join(letters[self.rng.integers(len(letters), size=n)]) for n in self.rng.integers(2, 10, 20_000)
        ]
        weights = 1.0 / np.arange(1, len(self.words) + 1)
        self.cumulative = np.cumsum(weights / weights.sum())

    def statement(self) -> str:
        length = int(self.rng.lognormal(5.3, 0.5))
        found = np.searchsorted(self.cumulative, self.rng.random(length))
        return " ".join(self.words[n] for n in found)

    def tests(self) -> tuple[list[str], list[str]]:
        sizes = np.minimum(self.rng.lognormal(3.5, 1.6, TESTS), 20_000).astype(int) + 1
        inputs = [" ".join(map(str, self.rng.integers(0, 10**6, n))) + "\n" for n in sizes]
        return inputs, [f"{n}\n" for n in self.rng.integers(0, 10**9, TESTS)]

    def nearly(self, statement: str) -> str:
        words = statement.split()
        words[int(self.rng.integers(len(words)))] = "changed"
        return " ".join(words)


def taco(maker: Maker, statement: str) -> dict[str, Any]:
    inputs, outputs = maker.tests()
    return {
        "question": statement,
        "input_output": json.dumps({"inputs": inputs, "outputs": outputs}),
        "solutions": [f"print({maker.rng.integers(10**9)})"],
        "difficulty": "EASY",
    }


def synthetic(maker: Maker, statement: str) -> dict[str, Any]:
    cases = [
        {"type": "stdin_stdout", "input": i, "output": o, "fn_name": None} for i, o in zip(*maker.tests(), strict=True)
    ]
    return {
        "prompt": f"Solve the following coding problem using the programming language python:\n\n{statement}\n\n"
        "Now solve the problem and return the code.",
        "verification_info": json.dumps({"language": "python", "test_cases": cases}),
        "gold_standard_solution": f"```python\nprint({maker.rng.integers(10**9)})\n```",
    }


def livecodebench(maker: Maker, statement: str) -> dict[str, Any]:
    cases = [{"input": i, "output": o, "testtype": "stdin"} for i, o in zip(*maker.tests(), strict=True)]
    return {
        "question_content": statement,
        "public_test_cases": json.dumps(cases[:2]),
        "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases[2:])))).decode(),
        "contest_date": "2024-01-01T00:00:00",
        "metadata": "{}",
    }


MAKERS = {"taco": taco, "primeintellect": synthetic, "livecodebench": livecodebench}


def rows_of(maker: Maker, source: str, count: int, known: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of one source; some are near copies of what is in `known`, which grows."""
    for _ in range(count):
        copied = known and maker.rng.random() < COPIES
        statement = maker.nearly(known[int(maker.rng.integers(len(known)))]) if copied else maker.statement()
        known.append(statement)
        yield MAKERS[source](maker, statement)


def write_sets(folder: Path, problems: int) -> int:
    """Write all sets and a journal that has every verdict; the number of problems."""
    maker = Maker(SEED)
    known: list[str] = []
    total = 0
    (folder / "state").mkdir(parents=True)
    with (folder / "state" / "judged.jsonl").open("w") as journal:

        def noted(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            for row in rows:
                record = reader_for(row)[1](row, "set")
                for solution in record.solutions:
                    key = verdict_key(record.strict(), solution)
                    entry = {"key": key, "passed": True, "seconds": 0.1, "judge": judge_version()}
                    journal.write(json.dumps(entry) + "\n")
                yield row

        for source, share in SHARES.items():
            count = round(problems * share)
            total += count
            rows = noted(rows_of(maker, source, count, known))
            if source == "taco":
                write_parquet(folder / f"{source}.parquet", rows)
            else:
                with (folder / f"{source}.jsonl").open("w") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
    with (folder / "evaluation.jsonl").open("w") as file:
        for number in range(EVALUATION):
            statement = known[number * 7 % len(known)] if number % 10 == 0 else maker.statement()
            file.write(json.dumps(livecodebench(maker, statement)) + "\n")
    return total


def write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    chunk, writer = [], None
    for row in rows:
        chunk.append(row)
        if len(chunk) == 500:
            table = pa.Table.from_pylist(chunk)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            chunk = []
    if chunk:
        table = pa.Table.from_pylist(chunk)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer as models of the Qwen family have one, learnt from the sets."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    with heavy_imports():
        from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    maker = Maker(SEED + 1)
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator((maker.statement() for _ in range(2000)), trainer)
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
    PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template).save_pretrained(folder)


@dataclass(frozen=True)
class Curated:
    """What one run of the command took, and its report."""

    seconds: float
    cpu_seconds: float
    """Of the command alone: on a busy machine they say how long it would take on a quiet one."""
    mib: float
    report: dict[str, Any]


def curate(arguments: list[str]) -> Curated:
    """Run the command."""
    output = Path(arguments[arguments.index("--output-dir") + 1])
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "deepcoder_trainer", "curate", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise SystemExit(f"curate ended with status {process.returncode}")
    report = json.loads((output / "report.json").read_text())
    return Curated(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, report)


def everything_but_judging(folder: Path, problems: int) -> dict[str, Any]:
    """Prepare and write all sets with every verdict known."""
    total = write_sets(folder, problems)
    write_tokenizer(folder / "model")
    arguments = [f"{source}={folder / source}.{'parquet' if source == 'taco' else 'jsonl'}" for source in SHARES]
    arguments += ["--against", f"evaluation={folder / 'evaluation.jsonl'}", "--tokenizer", str(folder / "model")]
    arguments += ["--state-dir", str(folder / "state"), "--output-dir", str(folder / "out"), "--judge-workers", "1"]
    done = curate(arguments)
    report = done.report
    assert sum(report["read"].values()) == total
    assert report["judging"]["judged"] == 0
    names = ("long_prompt", "contaminated", "near_duplicate")
    dropped = {name: sum(d.get(name, 0) for d in report["dropped"].values()) for name in names}
    expected = total * COPIES
    assert 0.8 * expected < dropped["near_duplicate"] + dropped["contaminated"] < 1.2 * expected + EVALUATION, dropped
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return {
        "problems": total,
        "input_mb": round(size / 1e6, 1),
        "prepare_seconds": round(done.seconds, 1),
        "prepare_cpu_seconds": round(done.cpu_seconds, 1),
        "prepare_mb": round(done.mib, 1),
        "kept": sum(report["kept"].values()),
        **dropped,
        "phases": report["seconds"],
    }


def judging(folder: Path, programs: int, turn: int) -> tuple[float, float]:
    """Seconds that the command, and the judge's own command, take for the same programs."""
    rows = [
        {
            "id": f"p{n}",
            "source": "bench",
            "prompt": " ".join(f"w{turn}x{n}x{k}" for k in range(20)),
            "tests": [{"input": f"{k}\n", "output": f"{k}\n"} for k in range(5)],
            "solution": f"{WORK}# {turn}.{n}",
        }
        for n in range(programs)
    ]
    path = folder / f"judged-{turn}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--output-dir", str(folder / f"out-{turn}"), "--judge-workers", str(workers())]
    report = curate([f"bench={path}", *options]).report
    assert report["kept"] == {"bench": programs}
    assert report["judging"] == {"judged": programs, "known": 0}
    return report["seconds"]["verify"], own_seconds(rows, folder / f"jobs-{turn}.jsonl")


def own_seconds(rows: list[dict[str, Any]], path: Path) -> float:
    """Seconds from the judge's first verdict to its last, and as much again as the first ones are of all."""
    lines = []
    for row in rows:
        problem = reader_for(row)[1](row, "bench").strict()
        request: JudgeRequest = JudgedProblem(problem).submission(row["solution"], "bench").request
        request = request.model_copy(update={"id": f"{len(lines)}"})
        lines.append(request.model_dump_json(exclude_none=True) + "\n")
    program = str(Path(sys.executable).with_name("deepcoder-sandbox"))
    command = [program, "judge", "--workers", str(workers())]
    path.write_text("".join(lines))  # a file: a pipe that is full would hold both sides
    with path.open() as jobs:
        process = subprocess.Popen(command, stdin=jobs, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first, seen = 0.0, 0
    for line in process.stdout:
        assert json.loads(line)["passed"] is True
        seen += 1
        if seen == workers():
            first = time.perf_counter()
    last = time.perf_counter()
    assert process.wait() == 0
    assert seen == len(rows)
    return (last - first) * seen / (seen - workers())


def workers() -> int:
    return os.cpu_count() or 1


def page(figures: dict[str, Any]) -> str:
    what = f"{figures['problems']:,} problems × {TESTS} tests ({figures['input_mb']:,} MB)"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"""# Curation

{datetime.date.today().isoformat()}, commit {commit()}, {machine()}; {memory:.0f} GiB of memory.
`make bench-curate`: what is measured, and how, stands at the top of `benchmarks/curate.py`.

| | measured | wanted |
|---|---|---|
| {what}, all but judging | {figures["prepare_seconds"]} s | ≤ {MOST_SECONDS:g} s |
| the same in CPU seconds, of both cores | {figures["prepare_cpu_seconds"]} s | |
| memory | {figures["prepare_mb"]:,.0f} MiB | ≤ {MOST_MB:,.0f} MiB |
| judging, as a share of the judge's own speed | {figures["judging_ratio"]} | ≥ {LEAST_SPEED} |

Of these problems {figures["kept"]:,} were kept, {figures["near_duplicate"]:,} dropped as near duplicates and
{figures["contaminated"]:,} as contaminated. By phase: {", ".join(f"{k} {v} s" for k, v in figures["phases"].items())}.
Not met: {", ".join(figures["unmet"]) or "nothing"}.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=24_000)
    parser.add_argument("--programs", type=int, default=400, help="0: do not judge")
    parser.add_argument("--page", type=Path, help="write a dated page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-curate-") as name:
        folder = Path(name)
        figures = everything_but_judging(folder, options.problems)
        turns = [judging(folder, options.programs, turn) for turn in range(2)] if options.programs else []
    figures["judging_ratio"] = round(min(o for _, o in turns) / min(c for c, _ in turns), 3) if turns else None
    figures["turns"] = [[round(c, 2), round(o, 2)] for c, o in turns]
    figures["unmet"] = [
        name
        for name, missed in (
            ("prepare_seconds", figures["prepare_seconds"] > MOST_SECONDS),
            ("prepare_mb", figures["prepare_mb"] > MOST_MB),
            ("judging_ratio", bool(turns) and figures["judging_ratio"] < LEAST_SPEED),
        )
        if missed
    ]
    text = page(figures)
    print(text)
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(text)
    print(json.dumps(figures))
    return 1 if figures["unmet"] else 0


if __name__ == "__main__":
    sys.exit(main())
