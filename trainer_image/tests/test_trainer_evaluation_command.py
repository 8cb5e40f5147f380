"""`deepcoder-trainer evaluate` as a program, through the real judge: known answers, a real kill, what is found again.

Responses come from files, so that no engine is started; everything behind the response is as with one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import held_judges
import pytest
from attempt_world import TINY
from benchmark_world import right_responses, stub_responses, write_sets
from curation_world import own_row, write_jsonl

from deepcoder_contracts.exit import ExitCode
from deepcoder_trainer.__main__ import main as cli_main
from deepcoder_trainer.evaluation.results import EvaluationResults
from deepcoder_trainer.evaluation.samples import SCHEMA, write_rows
from deepcoder_trainer.judge.backend import Judgement
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.samples import read_samples

pytestmark = pytest.mark.timeout(600)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "datasets" / "humaneval.jsonl"


def command(output: Path, sets: dict[str, Path], responses: dict[str, Path], *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "deepcoder_trainer", "evaluate", "--output-dir", str(output), "--judge-workers", "2"),
        *("--datasets", *(f"{name}={path}" for name, path in sets.items())),
        *("--responses", *(f"{name}={path}" for name, path in responses.items())),
        *more,
    ]


@pytest.fixture(scope="module")
def judge() -> Iterator[LocalJudge]:
    judge = LocalJudge(2)
    yield judge
    judge.close()


@pytest.fixture
def evaluate(
    judge: LocalJudge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command in this process, with one judge for all; returns what it printed."""
    monkeypatch.setattr("deepcoder_trainer.judge.local.LocalJudge", lambda *_: judge)
    monkeypatch.setattr(judge, "close", lambda: None)

    def run(output: Path, sets: dict[str, Path], responses: dict[str, Path], *more: str) -> str:
        assert cli_main(command(output, sets, responses, *more)[3:]) == 0
        return capsys.readouterr().out

    return run


def results_in(output: Path, printed: str) -> EvaluationResults:
    match = re.search(r"results: (.*)", printed)
    assert match is not None, printed
    folder = Path(match[1])
    assert folder.parent == output / "eval"
    return EvaluationResults.from_json((folder / "results.json").read_bytes())


def test_canonical_solutions_score_all_and_stubs_nothing(tmp_path: Path, evaluate: Callable[..., str]) -> None:
    paths, sets, responses = write_sets(tmp_path), {}, {}
    for name, path in paths.items():
        # The source decides how a set of the released layout is judged, and has its name.
        for kind, given in (("right", right_responses), ("stub", stub_responses)):
            own_name = name if kind == "right" else f"{name}.stub"
            sets[own_name] = path
            responses[own_name] = write_jsonl(tmp_path / f"{own_name}.responses.jsonl", given(name, own_name))
    printed = evaluate(tmp_path / "out", sets, responses)
    results = results_in(tmp_path / "out", printed)
    found = results.targets["Given"]
    means = {name: r.pass_at_1.mean if r.pass_at_1 else None for name, r in found.items()}
    expected = {name: float(not name.endswith(".stub")) for name in sets}
    assert means == expected, {name: r.verdicts for name, r in found.items()}
    assert all(r.unjudged == 0 for r in found.values())
    assert results.inputs["judge"].startswith("sha256:"), "the judge says which code it is"
    assert set(found["livecodebench"].by_difficulty) == {"easy", "medium"}
    assert set(found["livecodebench"].by_month) == {"2024-08", "2024-09"}
    assert "sample tests alone" in printed, "the caveat is beside the number"
    folder = tmp_path / "out" / "eval" / results.key
    assert {p.name for p in folder.iterdir()} == {
        "MANIFEST.json",
        "results.json",
        "results.md",
        "results.png",
        "samples",
    }
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "results.md").read_text()
    assert "| livecodebench: 2 × 1 | Given |" in page
    assert "sample tests alone" in page
    assert "1 responses per problem from files, which do not say how they were sampled, judge sha256:" in page
    rows = read_samples(folder / "samples" / "Given" / "livecodebench.parquet")
    assert [row["problem_id"] for row in rows] == ["abc1", "lc2"]
    assert set(rows[0]) == set(SCHEMA.names)


@pytest.mark.skipif(not SHARED.is_file(), reason="HumanEval itself is not here")
def test_canonical_solutions_of_humaneval_itself_score_all(tmp_path: Path, evaluate: Callable[..., str]) -> None:
    rows, responses = [], []
    for line in SHARED.read_text().splitlines():
        given = json.loads(line)
        test = given["test_code"].rstrip().removesuffix(f"check({given['fn_name']})")
        head = {"task_id": given["id"], "prompt": given["prompt"], "entry_point": given["fn_name"]}
        rows.append({**head, "canonical_solution": "", "test": test})
        responses.append({"task_id": given["id"], "solution": given["solution"]})
    sets = {"humaneval": write_jsonl(tmp_path / "h.jsonl", rows)}
    printed = evaluate(tmp_path / "out", sets, {"humaneval": write_jsonl(tmp_path / "r.jsonl", responses)})
    assert results_in(tmp_path / "out", printed).targets["Given"]["humaneval"].verdicts == {"passed": 164}


def test_evaluation_that_is_killed_goes_on_with_the_samples_that_are_left(tmp_path: Path, scratch: Path) -> None:
    slow = "import time\ntime.sleep(0.05)\nprint(input())"
    rows = [
        {"id": f"p{n}", "prompt": f"Echo {n}.", "tests": [{"input": f"{n}\n", "output": f"{n}\n"}]} for n in range(30)
    ]
    sets = {"echo": write_jsonl(tmp_path / "echo.jsonl", rows)}
    responses = {
        "echo": write_jsonl(tmp_path / "r.jsonl", [{"problem_id": f"p{n}", "solution": slow} for n in range(30)])
    }
    output = tmp_path / "out"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (tmp_path / "log").open("wb") as log:
        [python, _module, *program] = command(output, sets, responses)
        held = [python, held_judges.__file__, "20", *program]
        process = subprocess.Popen(held, stdout=log, stderr=log, env=environment)
        try:
            kept = waited_for_parts(output, process, at_least=5)
        finally:
            process.kill()
            process.wait(60)
    assert process.returncode == -signal.SIGKILL
    assert not list(output.glob("eval/*/MANIFEST.json"))
    assert list(scratch.glob("deepcoder-evaluate-*")), "so the next one has something to remove"

    with (tmp_path / "log2").open("wb") as log:
        program = command(output, sets, responses)
        again = subprocess.run(
            program, stdout=subprocess.PIPE, stderr=log, text=True, timeout=300, check=False, env=environment
        )
    assert not list(scratch.glob("deepcoder-*"))
    said = (tmp_path / "log2").read_text()
    assert again.returncode == 0, said
    assert "Given on echo: 30 of 30 were sampled before" in said
    results = results_in(output, again.stdout)
    assert results.targets["Given"]["echo"].verdicts == {"passed": 30}
    # A verdict that was kept is the one that is reported: judging it again would have taken another time.
    judged = {row["group_id"]: row["judge_seconds"] for row in samples_of(output, results.key)}
    assert {place: judged[place] for place in kept} == kept
    assert not (output / "eval" / results.key / "parts").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_that_is_asked_to_stop_says_how_to_go_on_and_leaves_no_folder(
    tmp_path: Path,
    evaluate: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    async def stopped(_client: JudgeClient, _submission: Submission) -> Judgement:
        signal.raise_signal(number)
        return await asyncio.Future()

    monkeypatch.setattr(JudgeClient, "judge", stopped)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sets = {"echo": write_jsonl(tmp_path / "echo.jsonl", [own_row()])}
    responses = {"echo": write_jsonl(tmp_path / "r.jsonl", [{"problem_id": "mine-1", "solution": "print(1)"}])}
    assert cli_main(command(tmp_path / "out", sets, responses)[3:]) == ExitCode.DRAINED
    assert "stopped; run the same command again to continue" in capsys.readouterr().err
    assert not list(tmp_path.glob("deepcoder-*"))


def waited_for_parts(output: Path, process: subprocess.Popen[bytes], at_least: int) -> dict[int, float]:
    """Seconds of the verdicts that are kept, once there are so many."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        kept = {
            entry["place"][0]: entry["outcome"][2]
            for part in output.glob("eval/*/parts/Given/echo/*.jsonl")
            for entry in map(json.loads, part.read_text().splitlines())
            if "outcome" in entry
        }
        if len(kept) >= at_least:
            return kept
        time.sleep(0.05)
    raise AssertionError("no verdict was kept within four minutes")


def samples_of(output: Path, key: str) -> list[dict[str, Any]]:
    return read_samples(output / "eval" / key / "samples" / "Given" / "echo.parquet")


def test_result_that_is_found_is_said_to_be_and_another_input_is_measured_anew(
    tmp_path: Path, evaluate: Callable[..., str]
) -> None:
    row = {"id": "p", "prompt": "Echo.", "tests": [{"input": "1\n", "output": "1\n"}]}
    sets = {"echo": write_jsonl(tmp_path / "echo.jsonl", [row])}
    responses = {"echo": write_jsonl(tmp_path / "r.jsonl", [{"problem_id": "p", "solution": "print(input())"}])}
    output = tmp_path / "out"
    first = evaluate(output, sets, responses)
    assert "were measured at" not in first
    found = evaluate(output, sets, responses)
    assert re.search(
        r"These results were measured at \d{4}-\d\d-\d\d .* UTC from the same inputs; nothing was measured", found
    )
    assert results_in(output, found) == results_in(output, first)

    again = results_in(output, evaluate(output, sets, responses, "--again"))
    assert again.key != results_in(output, first).key
    assert again.inputs["repeat"] == 1

    # The file's name is the same, its content is not.
    write_jsonl(tmp_path / "echo.jsonl", [{**row, "tests": [{"input": "1\n", "output": "2\n"}]}])
    other = results_in(output, evaluate(output, sets, responses))
    assert other.targets["Given"]["echo"].verdicts == {"wrong_answer": 1}
    assert len(list(output.glob("eval/*/MANIFEST.json"))) == 3, "no result has taken another's place"


def test_samples_of_an_evaluation_that_left_long_prompts_out_are_judged_again(
    tmp_path: Path, evaluate: Callable[..., str]
) -> None:
    """Nobody could have given the missing responses: `--responses` refused the file."""
    tests = [{"input": "1\n", "output": "1\n"}]
    problems = [{"id": name, "prompt": "Echo.", "tests": tests} for name in ("long", "short")]
    sets = {"echo": write_jsonl(tmp_path / "echo.jsonl", problems)}
    sampled = {"problem_id": "short", "response": "```python\nprint(input())\n```"}
    zero = {"step", "group_id", "index", "prompt_tokens", "limit_tokens", "judge_seconds", "judge_attempts"}
    unknown = {"prompt": "", "verdict": "", "finish": "stop"} | dict.fromkeys(zero, 0)
    first = tmp_path / "first.parquet"
    write_rows(first, [unknown | sampled], ["long"])
    found = results_in(tmp_path / "one", evaluate(tmp_path / "one", sets, {"echo": first}))
    again = tmp_path / "one" / "eval" / found.key / "samples" / "Given" / "echo.parquet"
    found_again = results_in(tmp_path / "two", evaluate(tmp_path / "two", sets, {"echo": again}))
    for each in (found, found_again):
        assert each.targets["Given"]["echo"].verdicts == {"passed": 1}
        assert each.left_out == {"echo": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "1 of 1 problems have fewer than 1 responses"),
        (
            [{"problem_id": "p", "response": "x"}, {"problem_id": "q", "response": "x"}],
            "'q' is not a problem of the set",
        ),
        (
            [{"problem_id": "p", "response": "x"}, {"problem_id": "p", "response": "y"}],
            "1 of 1 problems have more than 1 responses (p: 2)",
        ),
        ([{"problem_id": "p"}], "response: missing"),
        ([{"response": "x"}], "problem_id: missing"),
        ([{"problem_id": "p", "response": "x", "finish": "tired"}], "write stop or length"),
        ([{"problem_id": "p", "response": "x", "index": 1}], "count from 0"),
    ],
)
def test_responses_that_do_not_fit_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    from deepcoder_trainer.evaluation.answers import read_answers

    path = write_jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_answers({"s": path}).check("s", ["p"], 1)


def test_a_response_with_half_of_a_surrogate_pair_is_judged(tmp_path: Path, evaluate: Callable[..., str]) -> None:
    sets = {"echo": write_jsonl(tmp_path / "echo.jsonl", [own_row(tests=[{"input": "1\n", "output": "1\n"}])])}
    rows = [{"problem_id": "mine-1", "solution": "print(input())  # \ud83d"}]
    responses = {"echo": write_jsonl(tmp_path / "r.jsonl", rows)}
    output = tmp_path / "out"
    assert results_in(output, evaluate(output, sets, responses)).targets["Given"]["echo"].verdicts == {"passed": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ecko"], "--responses echo: missing: give each problem"),
        (["echo", "more"], "--responses more: not a name in --datasets: give each"),
        (["echo", "echo"], "echo has a file already: name each set once"),
    ],
)
def test_responses_are_given_to_each_set_by_its_name(
    tmp_path: Path, evaluate: Callable[..., str], capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    sets = {"echo": write_jsonl(tmp_path / "echo.jsonl", [own_row()])}
    file = write_jsonl(tmp_path / "r.jsonl", [{"problem_id": "mine-1", "solution": "print(1)"}])
    line = command(tmp_path / "out", sets, {"echo": file})[3:]
    at = line.index(f"echo={file}")
    line[at : at + 1] = [f"{name}={file}" for name in names]
    assert cli_main(line) == ExitCode.BAD_CONFIG
    assert message in capsys.readouterr().err


def test_two_processes_do_not_measure_the_same_at_once(
    tmp_path: Path, evaluate: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    row = {"id": "p", "prompt": "Echo.", "tests": [{"input": "1\n", "output": "1\n"}]}
    sets = {"echo": write_jsonl(tmp_path / "echo.jsonl", [row])}
    responses = {"echo": write_jsonl(tmp_path / "r.jsonl", [{"problem_id": "p", "solution": "print(input())"}])}
    output = tmp_path / "out"
    key = results_in(output, evaluate(output, sets, responses)).key
    lock = os.open(output / "eval" / key / "lock.tmp", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert cli_main(command(output, sets, responses)[3:]) == 64
    finally:
        os.close(lock)
    assert "is being measured by another process" in capsys.readouterr().err


def test_what_the_model_cannot_do_is_told_of_the_option(
    tmp_path: Path, judge: LocalJudge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deepcoder_trainer.judge.local.LocalJudge", lambda *_: judge)
    monkeypatch.setattr(judge, "close", lambda: None)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "max_position_embeddings": 512}))
    model, sets = ["--model", str(tmp_path)], ["--datasets", f"x={tmp_path}/x.jsonl"]
    output = ["--output-dir", str(tmp_path / "out")]
    assert cli_main(["evaluate", *model, *sets, *output, "--max-length", "48"]) == 64
    told = capsys.readouterr().err
    assert "--max-length is 48" in told
    assert "lower --max-prompt-length below 512, or give --rope, or use a model" in told

    named = tmp_path / "recipe.tensorParallel"
    named.mkdir()
    (named / "config.json").write_text(json.dumps({**TINY, "quantization_config": {"quant_method": "awq"}}))
    assert cli_main(["evaluate", "--model", str(named), *sets, *output, "--max-length", "48", "--tp", "3"]) == 64
    told = capsys.readouterr().err
    assert f"the model at {named} is quantized" in told, "the words of a path stay as they are"
    assert "--tp is 3, but the model has" in told
