"""The room for requests and stored tests: who is lent memory, what a request counts for, and which are the same."""

import pytest

from deepcoder_contracts.judge import JudgeRequest, TestCase
from deepcoder_sandbox.admission import Refused
from deepcoder_sandbox.server.idempotency import content_digest
from deepcoder_sandbox.server.memory_budget import MemoryBudget, OverBudget, Share, request_bytes
from deepcoder_sandbox.tests_store import StoreFull, TestStore


def test_store_counts_memory_and_refuses_what_never_fits():
    store = TestStore(1000)
    store.put("a", 600, ())
    assert store.borrow("a") == ()
    with pytest.raises(StoreFull):
        store.put("b", 600, ())
    store.give_back("a")
    store.put("b", 600, ())
    assert store.borrow("a") is None
    assert store.bytes == 600
    with pytest.raises(Refused, match="--tests-store-mb"):
        store.put("c", 1001, ())
    assert store.borrow("b") == ()
    store.put("c", 300, ())
    store.borrow("b")
    for _ in range(2):
        store.give_back("b")
    store.put("d", 300, ())  # in the place of what nobody has asked for longest
    assert (store.borrow("b"), store.borrow("c")) == ((), None)


def test_set_that_is_stored_again_counts_once_and_stays_in_use():
    store = TestStore(1000)
    store.put("a", 600, ())
    assert store.borrow("a") == ()
    store.put("a", 600, ())  # from another client that did not find it
    assert store.bytes == 600
    with pytest.raises(StoreFull):
        store.put("b", 600, ())
    store.give_back("a")
    store.put("b", 600, ())
    assert store.bytes == 600


def test_set_that_is_stored_again_is_not_the_next_to_go():
    store = TestStore(1000)
    store.put("a", 400, ())
    store.put("b", 400, ())
    store.put("a", 400, ())
    store.put("c", 400, ())
    assert (store.borrow("a"), store.borrow("b")) == ((), None)


def test_set_that_does_not_fit_drops_no_other():
    store = TestStore(1000)
    store.put("a", 300, ())
    store.put("b", 600, ())
    store.borrow("b")
    with pytest.raises(StoreFull):
        store.put("c", 500, ())
    assert store.borrow("a") == ()


def test_room_lends_no_more_than_it_has_but_to_one_alone():
    room = MemoryBudget(100)
    first, second = Share(room), Share(room)
    first.resize(90)
    with pytest.raises(OverBudget):
        second.resize(11)
    second.resize(10)
    first.resize(50)
    second.resize(50)
    with pytest.raises(OverBudget):
        second.resize(51)
    assert room.held == 100
    first.release()
    second.resize(500)  # alone, and in memory already
    with pytest.raises(OverBudget):
        first.resize(1)
    second.release()
    assert room.held == 0


def test_run_leaves_others_as_much_room_as_it_holds_beyond_its_first_request():
    room = MemoryBudget(100)
    flood = [Share(room, "flood") for _ in range(3)]
    flood[0].resize(30)
    flood[1].resize(20)
    with pytest.raises(OverBudget):
        flood[2].resize(1)
    assert room.held_by("flood") == 50
    large, small = Share(room, "new"), Share(room, "new")
    large.resize(45)  # the first of its run: whatever is free
    with pytest.raises(OverBudget):
        small.resize(1)
    flood[0].release()
    with pytest.raises(OverBudget):
        flood[2].resize(20)
    flood[2].resize(5)
    for share in (*flood, large, small):
        share.release()
    flood[0].resize(500)  # alone, and in memory already
    flood[0].release()
    assert (room.held, room.held_by("flood"), room.held_by("new")) == (0, 0, 0)
    assert not room._held_by  # of names without number, none is kept


def test_run_that_could_not_have_more_can_give_back():
    room = MemoryBudget(100)
    first, second, other = Share(room, "run"), Share(room, "run"), Share(room, "other")
    first.resize(30)
    second.resize(10)
    other.resize(60)  # and nothing is free
    second.resize(5)
    second.release()
    assert room.held == 90


def test_text_of_wide_characters_counts_as_much_memory_as_it_takes():
    narrow = JudgeRequest(id="a", code="x" * 1000, tests=[TestCase(input="y" * 1000, output="")])
    wide = JudgeRequest(id="a", code="x" * 1000, tests=[TestCase(input="y" * 999 + "\U0001f600", output="")])
    assert request_bytes(wide) - request_bytes(narrow) >= 3000


def test_digest_is_of_all_that_is_judged_and_of_where_each_text_ends():
    def digest(*tests, **fields):
        cases = [TestCase(input=given, output=expected) for given, expected in tests]
        return content_digest(JudgeRequest(**{"id": "a", "code": "c", "tests": cases, **fields}))

    digests = [
        digest(("1", "2")),
        digest(("12", "")),
        digest(("", "12")),
        digest(("1", "2"), ("", "")),
        digest(("1", "2"), code="d"),
        digest(("1", "2"), id="b"),
        digest(("1", "2"), time_limit_s=1),
        digest(("1", "2"), scoring="taco-compat"),
        content_digest(JudgeRequest(id="a", code="c", tests_sha256="0" * 64)),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(("1", "2"), deadline_s=5) == digests[0]
