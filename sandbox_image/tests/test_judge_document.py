"""docs/judge.md against the code: a figure that changes in one of them only fails here."""

from __future__ import annotations

import re
from pathlib import Path

import livecodebench_form_rows
import livecodebench_function_rows
import livecodebench_stdin_rows
import pytest

from deepcoder_contracts import judge, judge_time, judgeable
from deepcoder_contracts.judge import JudgeRequest, Scoring, Verdict
from deepcoder_sandbox import admission, cli, limits, pool, slot
from deepcoder_sandbox.compare import values
from deepcoder_sandbox.observer import Phase, Recycled
from deepcoder_sandbox.server import app, logs, memory_budget, metrics, request_body
from deepcoder_sandbox.worker import confine, namespaces, rootfs, thread_gate

DOCUMENT = (Path(__file__).parents[2] / "docs" / "judge.md").read_text()
FIELDS = JudgeRequest.model_fields
TIME_LIMIT_S = FIELDS["time_limit_s"].default
TABLES = [line for line in DOCUMENT.splitlines() if line.startswith("|")]
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in TABLES]


def option(name):
    """The default of an option of `serve`."""
    return getattr(cli._parser().parse_args(["serve", "--socket", "/s"]), name)


DEFAULTS = {
    "CPU time of a test, all threads": TIME_LIMIT_S,
    "wall clock of a test, without time in which others kept it from running": limits.WALL_PER_CPU * TIME_LIMIT_S,
    "the same in livecodebench, which rings an alarm at `time_limit_s`": TIME_LIMIT_S,
    "address space beyond an idle interpreter's": FIELDS["memory_limit_mb"].default,
    "stdout, stderr, or any file": limits.OUTPUT_BYTES / limits.MIB,
    "a function's encoded return value": limits.VALUE_BYTES / limits.MIB,
    "open files": confine.OPEN_FILES,
    "signals that wait for a program": confine.QUEUED_SIGNALS,
    f"threads of a program (fewer than {2 * thread_gate.MAX_THREADS} where many ask at once)": thread_gate.MAX_THREADS,
    "scratch, Namespaces": rootfs.SCRATCH_MB,
    "files in scratch, Namespaces": rootfs._MAX_FILES,
    "a program, in UTF-8": judge.MAX_CODE_BYTES / limits.MIB,
    "tests of a submission": judge.MAX_TESTS,
    "levels of nesting of a function's arguments and values": judgeable.MAX_DEPTH,
    "request bodies and submissions in memory (one alone always fits)": option("max_queued_mb"),
    "kept answers": memory_budget.ANSWERS_MB,
    "connections": memory_budget.MAX_CONNECTIONS,
    "a body's arrival": request_body.READ_S,
    "request body, or a line of a batch (always 64)": option("max_body_mb"),
    "JSON of a body outside its strings": admission.MAX_STRUCTURE_BYTES / limits.MIB,
    "strings in the JSON of a body, names of fields included": admission.MAX_TEXTS,
    "stored test sets, least recently used first out, none that is in use": option("tests_store_mb"),
    "runs of a zygote before it is replaced": option("recycle_after"),
    "time to finish accepted work on SIGTERM": option("drain_seconds"),
}


@pytest.mark.parametrize("limit", DEFAULTS)
def test_default_of_a_limit_is_the_codes(limit):
    (row,) = [row for row in ROWS if row[0] == limit]
    assert row[3] == f"{DEFAULTS[limit]:g}"


def test_limits_that_are_told_otherwise():
    assert namespaces._MAX_THREADS == thread_gate.MAX_THREADS
    assert f"{limits.MAX_QUEUED_A_SLOT} a slot" in DOCUMENT
    assert option("recycle_after") == slot.RECYCLE_AFTER_RUNS
    assert limits.harness_limit_s(7, 10) == (7 + 1) * 10 + 5
    assert limits.submission_limit_s(60, 1) == 3 * 60
    assert limits.judging_deadline_s(1, 10) == 2 * limits.submission_limit_s(1, 10) + 30
    longest_s = judge_time.LONGEST_SUBMISSION_S
    assert limits.submission_limit_s(600, 100) == limits.harness_limit_s(600, 100) == longest_s
    assert f"at most {longest_s:g} |" in DOCUMENT
    assert f"at most {limits.judging_deadline_s(600, 100):g} |" in DOCUMENT
    assert limits.ALARM_GRACE_S == 1
    assert (values._TIMES_EXPECTED, values._BYTES_MORE) == (64, 64 << 10)
    assert (values._BRACKETS_A_VALUE, values._BRACKETS_MORE) == (4, 1000)
    assert app.UNHEALTHY_AFTER_S == 120
    assert (pool._FAILED_STARTS, pool._START_AGAIN_S) == (3, 5)
    assert f"cut at {logs.MAX_CHARS:,} characters" in DOCUMENT


def test_every_verdict_is_told():
    told = {row[0].strip("`") for row in ROWS}
    assert {verdict.value for verdict in Verdict} <= told


def test_every_scoring_has_a_column_beside_the_others():
    (head,) = [row for row in ROWS if row[1:2] == ["strict (default)"]]
    assert [name.removesuffix(" (default)") for name in head[1:]] == list(Scoring)


def test_every_metric_is_told_and_none_that_is_not_there():
    said = set(re.findall(r"^\| ((?:`[a-z_]+(?:\{[a-z,]+\})?`(?:, )?)+) \|", DOCUMENT, re.MULTILINE))
    told = {name for cell in said for name in re.findall(r"`([a-z_]+)", cell)}
    registered = metrics.Metrics()
    registered.watch(lambda: judge.Capacity(slots=1, busy=0, queued=0, tier=judge.Tier.LANDLOCK, limits={}))
    registered.watch_memory(dict)
    names = set(re.findall(r"^# TYPE deepcoder_sandbox_([a-z_]+)", registered.exposition().decode(), re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    assert names <= told, names - told
    for reason in [*Recycled, *Phase]:
        assert reason.value in DOCUMENT


def test_number_of_programs_is_the_rows():
    tables = (livecodebench_form_rows, livecodebench_function_rows, livecodebench_stdin_rows)
    count = sum(len(rows) for table in tables for rows in table.ROWS.values())
    assert f"hold {count} programs" in DOCUMENT
