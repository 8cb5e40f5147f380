"""Whatever a client sends is judged or refused by field; whatever a runner says earns nothing and is never an `error`.

Drawn by hypothesis: short and always the same in `make test`, longer and afresh in `make test-long`. What was found is
kept as an example.
"""

from __future__ import annotations

import json
import signal

import pytest
from fuzz_settings import LONG, SHORT
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoder_contracts.judge import Scoring, Verdict
from deepcoder_sandbox import admission, outcome
from deepcoder_sandbox.worker.packets import RunEnded, RunLimits

LENGTHS = [SHORT, pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
lengths = pytest.mark.parametrize("length", LENGTHS, ids=["short", "long"])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=3), items, max_size=3),
    max_leaves=5,
)
texts = st.text(max_size=8) | st.sampled_from(["1\n2", "[" * 300, "[[]]", "\0", "\ud800", "1e999", "9" * 60_000, "{"])
FIELDS = {
    "id": st.text(max_size=3) | st.just("a") | st.just("x" * 257),
    "code": texts,
    "language": st.sampled_from(["python", "c++"]),
    "kind": st.sampled_from(["stdin", "function", "script", "other"]),
    "tests": st.lists(st.fixed_dictionaries({"input": texts, "output": texts}), max_size=3),
    "tests_sha256": st.sampled_from(["0" * 64, "0" * 63, "G" * 64, "0" * 64 + "\n"]),
    "fn_name": st.sampled_from(["f", "A.f", "A.f.g", "1f", "f\n", "é", "", "f()"]),
    "time_limit_s": st.floats() | st.integers(-1, 700),
    "memory_limit_mb": st.integers(-1, 70_000) | st.floats(),
    "deadline_s": st.floats() | st.none(),
    "stop_on_first_failure": st.booleans(),
    "scoring": st.sampled_from([*Scoring, "none"]),
    "float_tolerance": st.floats() | st.none(),
    "unknown": json_values,
}


@st.composite
def requests(draw):
    """A request that is often well-formed, with some fields odd or missing."""
    request = {"id": "a", "code": "print(1)", "tests": [{"input": "1", "output": "1"}]}
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True)):
        request[name] = draw(FIELDS[name] | json_values) if draw(st.integers(0, 5)) == 0 else draw(FIELDS[name])
    for name in draw(st.lists(st.sampled_from(sorted(request)), max_size=1)):
        del request[name]
    return request


@lengths
def test_any_request_is_accepted_or_refused_by_field(length):
    @length
    @given(requests())
    def check(drawn):
        body = json.dumps(drawn).encode()
        refused = None
        try:
            request = admission.parse_request(body)
            admission.check(request, tuple(request.tests or ()), max_memory_mb=2048)
        except admission.Refused as problem:
            refused = problem
        if refused is None:
            assert admission.parse_request(request.model_dump_json().encode()) == request
        else:
            assert refused.field
            assert refused.field.split(".")[0] in refused.error
            assert len(refused.error) < 2000

    check()


@lengths
def test_any_body_that_is_no_request_is_refused(length):
    @length
    @given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
    def check(body):
        with pytest.raises(admission.Refused):
            admission.parse_request(body)

    check()


@lengths
def test_any_claim_earns_nothing(length):
    claims = st.binary(max_size=50) | json_values.map(lambda value: json.dumps(value).encode())
    claims |= st.fixed_dictionaries({"failure": json_values, "detail": json_values, "completed": json_values}).map(
        lambda fields: json.dumps(fields).encode()
    )
    ended = st.builds(
        RunEnded,
        wait_status=st.sampled_from([0, 1 << 8, 255 << 8, signal.SIGSEGV, signal.SIGXFSZ, signal.SIGXCPU, 64]),
        cpu_s=st.floats(0, 10),
        wall_s=st.floats(0, 10),
        starved_s=st.just(0.0),
        max_rss_kb=st.integers(0, 1 << 21),
        killed_for=st.sampled_from([None, None, "cpu", "wall", "cancelled"]),
        clean=st.booleans(),
    )

    @length
    @given(claims, ended, st.integers(0, 1 << 21), st.binary(max_size=20), st.booleans())
    def check(report, ended, written, stderr, crash_counts):
        limits = RunLimits(5.0, 15.0, 1024, 1 << 20)
        failed = outcome.failed_run(ended, limits, outcome.read_claim(report), written, stderr, crash_counts)
        if failed is None:
            assert not crash_counts or ended.exit_status == 0
        else:
            assert failed.verdict not in (Verdict.PASSED, Verdict.ERROR, Verdict.SKIPPED)

    check()


NAMES = (
    "bytes",
    "prepared",
    "started",
    "collapsed",
    "timed_out",
    "memory",
    "compile",
    "detail",
    "completed",
    "failure",
)
packets = (
    st.binary(max_size=20)
    | st.dictionaries(st.sampled_from(NAMES), json_values, max_size=3).map(lambda value: json.dumps(value).encode())
    | st.sampled_from(
        [
            b"",
            b"prepared",
            b"{}",
            b"[]",
            b"[" * 4000,
            b'{"bytes":0}',
            b'{"prepared":true}',
            b'{"bytes":1e400}',
            b"x" * 5000,
        ]
    )
)
ENDINGS = [
    "",
    "os._exit(0)",
    "os._exit(1)",
    "exit()",
    "1 / 0",
    "os.close(3)",
    "os.closerange(3, 64)",
    "os.kill(os.getpid(), 9)",
]


@pytest.mark.parametrize("scoring", ["livecodebench", "strict"])
@pytest.mark.parametrize("kind", ["stdin", "function"])
@lengths
def test_runner_that_speaks_for_itself_fails_its_test(judge_once, length, kind, scoring):
    """Descriptor 3 is the judge's: for answers (livecodebench), or for what the program's process reports (strict)."""
    fields = {"kind": "function", "fn_name": "f"} if kind == "function" else {}

    @settings(length, max_examples=length.max_examples // 8)
    @given(st.lists(packets, min_size=1, max_size=3), st.sampled_from(ENDINGS), st.booleans(), st.binary(max_size=9))
    def check(said, ending, at_once, output):
        steps = [
            "import os",
            f"os.ftruncate(6, 0); os.pwrite(6, {output!r}, 0)",
            f"for said in {said!r}: os.write(3, said)",
        ]
        steps.append(ending)
        if kind == "stdin":
            code = "\n".join(f"try:\n    {step}\nexcept OSError: pass" for step in steps if step)
        else:
            body = "\n".join(f"    try:\n        {step}\n    except OSError: pass" for step in steps if step)
            code = f"def f(*given):\n{body}" + ("\nf()" if at_once else "")
        answer = judge_once(code, ("1", '"secret"'), ("1", '"secret"'), scoring=scoring, time_limit_s=1, **fields)
        assert answer.passed is False, (code, answer)

    check()
