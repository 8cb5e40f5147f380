"""Pickles are read as plain data or not at all: nothing of them runs, and a small one cannot take much."""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import pickletools
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoder_trainer.problems import plain_pickle
from deepcoder_trainer.problems.plain_pickle import Damaged, UnsafePickle, decode, inflate, loads

PLAIN: list[Any] = [
    "text é 😀",
    "",
    7,
    -(2**200),
    1.5,
    None,
    True,
    [],
    {},
    [1, "a", [None, {"k": [False]}]],
    {"input": "1\n", "output": "2\n"},
    [{"input": str(n), "output": str(n)} for n in range(1000)],
    "x" * 100_000,
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=lambda v: repr(v)[:20])
def test_plain_data_is_read_as_python_reads_it(value: Any, protocol: int) -> None:
    assert loads(pickle.dumps(value, protocol)) == value


def test_tuples_come_as_lists() -> None:
    assert loads(pickle.dumps(((1, 2), (), (3,), (1, 2, 3, 4)))) == [[1, 2], [], [3], [1, 2, 3, 4]]


class Runs:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_runs_anything(tmp_path: Path, protocol: int) -> None:
    sign = tmp_path / "ran"
    hostile = pickle.dumps(["harmless", Runs(os.mkdir, str(sign))], protocol)
    with pytest.raises(Damaged):
        loads(hostile)
    assert not sign.exists()
    pickle.loads(hostile)  # what it would have done
    assert sign.exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("GLOBAL", b"cos\nsystem\n."),
        ("INST", b"(ios\nsystem\n."),
        ("STACK_GLOBAL", b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
        ("OBJ", b"(]o."),
        ("GLOBAL", b"cbuiltins\nlist\n)R."),
        ("PERSID", b"Pa\n."),
        ("BINPERSID", b"\x8c\x01aQ."),
        ("EXT1", b"\x82\x01."),
        ("BUILD", b"}}b."),
        ("REDUCE", b"])R."),
        ("NEWOBJ", b"\x80\x02])\x81."),
        ("DUP", b"]2."),
        ("POP", b"]]0."),
        ("NEXT_BUFFER", b"\x80\x05\x97."),
        ("BYTEARRAY8", b"\x80\x05\x96" + (1).to_bytes(8, "little") + b"a."),
        ("EMPTY_SET", b"\x80\x04\x8f."),
        ("INT", b"I7\n."),
        ("SHORT_BINBYTES", pickle.dumps(b"bytes", 3)),
        ("STRING", b"S'a'\n."),
    ],
)
def test_opcodes_that_make_more_than_plain_data_are_refused_by_name(name: str, data: bytes) -> None:
    with pytest.raises(UnsafePickle, match=rf"with {name}:"):
        loads(data)


def test_containers_cannot_be_referred_to_again() -> None:
    laughs: list[Any] = ["ha"]
    for _ in range(20):
        laughs = [laughs, laughs]
    cycle: list[Any] = []
    cycle.append(cycle)
    for hostile in (laughs, cycle):
        with pytest.raises(UnsafePickle, match="again"):
            loads(pickle.dumps(hostile))


def test_text_that_is_referred_to_often_counts_each_time() -> None:
    text = "x" * 1000
    data = pickle.dumps([text] * 2000)
    assert len(data) < 10_000
    with pytest.raises(UnsafePickle, match="more text"):
        loads(data, max_bytes=1_000_000)


def test_a_place_far_out_in_the_memo_takes_no_memory() -> None:
    hostile = b"\x80\x04]r\xff\xff\xff\x7f."  # LONG_BINPUT: the C unpickler makes room for all places before it
    tracemalloc.start()
    try:
        assert loads(hostile) == []
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_deep_nesting_is_refused_and_ends_nothing() -> None:
    deep = b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(UnsafePickle, match="deeper"):
        loads(deep)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x04",
        b"\x80\x04]",
        b"\x80\x04(.",
        b"\x80\x04a.",
        b"\x80\x04t.",
        b"\x80\x04h\x07.",
        b"\x80\x04]]e.",
        b"\x80\x04}(K\x01u.",
        b"\x80\x04}]a.",
        b"\x80\x04(]\x86.",
        b"\x80\x04X\xff\xff\xff\x7fa.",
        b"\x80\x04\x8d" + b"\xff" * 8 + b"a.",
        b"\x80\x04X\x01\x00\x00\x00\xff.",
        b"\xff\xfe",
        b"\x80\x04K\x01K\x02.",
    ],
)
def test_damaged_pickles_are_told_and_end_nothing(data: bytes) -> None:
    with pytest.raises(Damaged):
        loads(data)


def test_many_opcodes_and_long_integers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(UnsafePickle, match="opcodes"):
        loads(b"(" + b"K\x01" * 5000 + b"l.")
    with pytest.raises(UnsafePickle, match="integer"):
        loads(pickle.dumps(2**2000))


def test_a_zlib_bomb_is_not_expanded_beyond_its_limit() -> None:
    bomb = zlib.compress(b"\0" * (512 << 20), 1)
    assert len(bomb) < 4 << 20
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="expands to more than 1048576 bytes"):
            decode(base64.b64encode(bomb).decode(), max_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 2


def test_compressed_data_that_is_cut_or_no_such_data_is_told() -> None:
    good = zlib.compress(b"abc" * 1000)
    assert inflate(good, 3000) == b"abc" * 1000
    for bad in (good[:-3], good + b"x", b"abc", b""):
        with pytest.raises(Damaged, match="zlib"):
            inflate(bad)
    with pytest.raises(Damaged, match="base64"):
        decode("%%%")


plain = st.recursive(
    st.text(max_size=5) | st.integers() | st.floats(allow_nan=False) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(value=plain, protocol=st.integers(2, 5))
def test_any_plain_value_is_read_back(value: Any, protocol: int) -> None:
    assert loads(pickle.dumps(value, protocol)) == value


@settings(max_examples=400, deadline=None)
@given(value=plain, cut=st.integers(0, 60), junk=st.binary(max_size=40))
def test_whatever_is_no_plain_pickle_is_damaged_and_nothing_else(value: Any, cut: int, junk: bytes) -> None:
    data = pickle.dumps(value)
    for hostile in (junk, data[:cut] + junk + data[cut:], b"\x80\x04" + junk + b"."):
        with contextlib.suppress(Damaged):
            loads(hostile)


CARRIED_OUT = {
    *(
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
    ),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1"),
    *("TUPLE2", "TUPLE3", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MEMOIZE", "BINPUT"),
    *("LONG_BINPUT", "BINGET", "LONG_BINGET"),
}
REFUSED = [opcode for opcode in pickletools.opcodes if opcode.name not in CARRIED_OUT]


@settings(max_examples=600, deadline=None)
@given(before=plain, protocol=st.integers(2, 5), opcode=st.sampled_from(REFUSED), argument=st.binary(max_size=24))
def test_no_other_opcode_than_those_for_plain_data_is_ever_passed_over(
    before: Any, protocol: int, opcode: pickletools.OpcodeInfo, argument: bytes
) -> None:
    hostile = pickle.dumps(before, protocol)[:-1] + opcode.code.encode("latin-1") + argument + b"\n\n."
    with pytest.raises(Damaged):
        loads(hostile)


def test_every_opcode_that_python_knows_is_carried_out_or_refused() -> None:
    assert {opcode.name for opcode in pickletools.opcodes} >= CARRIED_OUT
    assert {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"} <= {
        opcode.name for opcode in REFUSED
    }
