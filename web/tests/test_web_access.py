"""Who may see what is asked of the API server, kept for a while, and forgotten in time."""

from __future__ import annotations

from typing import Any

import pytest

from deepcoder_client.connection import Connection, Kind
from deepcoder_client.errors import Unreachable
from deepcoder_web.access import (
    ALLOWED_SECONDS,
    REFUSED_SECONDS,
    Access,
    Unauthenticated,
    Unavailable,
    Viewer,
    _Remembered,
)

JANE = {"username": "jane", "uid": "7", "groups": ["devs"], "extra": {"scopes": ["a", "b"]}}


class Server(Connection):
    """An API server that knows one token, and answers access reviews as it is told."""

    def __init__(self) -> None:
        self.allowed = True
        self.denied = False
        self.known = {"good"}
        self.user: dict[str, Any] = JANE
        self.away = False
        self.asked: list[dict[str, Any]] = []

    def create(
        self, kind: Kind, namespace: str | None, body: dict[str, Any], below: str = "", name: str | None = None
    ) -> dict[str, Any]:
        if self.away:
            raise Unreachable("it does not answer")
        self.asked.append(body["spec"])
        if kind.plural == "tokenreviews":
            known = body["spec"]["token"] in self.known
            return {"status": {"authenticated": known, "user": self.user}}
        return {"status": {"allowed": self.allowed, "denied": self.denied}}


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.server = Server()
        self.access = Access(self.server, lambda: self.now)


def test_a_review_is_asked_with_all_that_the_token_said_of_its_owner() -> None:
    world = World()
    viewer = world.access.viewer("good")
    assert world.access.may(viewer, "get", "team", "demo")
    attributes = {
        "group": "deepcoder.dev",
        "resource": "deepcoderruns",
        "verb": "get",
        "namespace": "team",
        "name": "demo",
    }
    user = {"user": "jane", "uid": "7", "groups": ["devs"], "extra": {"scopes": ["a", "b"]}}
    assert world.server.asked[-1] == {**user, "resourceAttributes": attributes}


def test_answers_are_kept_and_a_right_that_was_withdrawn_is_gone_in_time() -> None:
    world = World()
    viewer = world.access.viewer("good")
    assert world.access.may(viewer, "list", "team")
    world.server.allowed = False
    world.now = ALLOWED_SECONDS - 1
    assert world.access.may(viewer, "list", "team")
    world.now = ALLOWED_SECONDS
    assert not world.access.may(viewer, "list", "team")


def test_a_right_that_was_granted_is_there_soon() -> None:
    world = World()
    world.server.allowed = False
    viewer = world.access.viewer("good")
    assert not world.access.may(viewer, "list", "team")
    world.server.allowed = True
    world.now = REFUSED_SECONDS
    assert world.access.may(viewer, "list", "team")


def test_a_bad_token_is_not_reviewed_again_at_once() -> None:
    world = World()
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            world.access.viewer("bad")
    assert len(world.server.asked) == 1


def test_answers_are_of_one_viewer_one_verb_and_one_name() -> None:
    world = World()
    jane = world.access.viewer("good")
    joe = Viewer("joe", "", (), ())
    assert world.access.may(jane, "get", "team", "demo")
    world.server.allowed = False
    assert not world.access.may(joe, "get", "team", "demo")
    assert not world.access.may(jane, "list", "team")
    assert not world.access.may(jane, "get", "team", "other")
    assert not world.access.may(jane, "get", "other", "demo")


def test_without_an_answer_nobody_sees_anything() -> None:
    world = World()
    viewer = world.access.viewer("good")
    world.server.away = True
    with pytest.raises(Unavailable):
        world.access.may(viewer, "get", "team", "demo")
    with pytest.raises(Unavailable):
        world.access.viewer("another")


def test_tokens_that_prove_nothing_drive_nobody_out_of_memory() -> None:
    world = World()
    world.access.viewer("good")
    asked = len(world.server.asked)
    for number in range(6000):
        with pytest.raises(Unauthenticated):
            world.access.viewer(f"bad-{number}")
    assert len(world.server.asked) == asked + 6000
    world.access.viewer("good")
    assert len(world.server.asked) == asked + 6000, "jane is still known"
    assert world.access.known("good")
    assert not world.access.known("bad-1")


def test_what_cannot_be_a_token_is_refused_without_a_question() -> None:
    world = World()
    for text in ("", "two words", "ü", "x" * 10_000, "a\nb"):
        with pytest.raises(Unauthenticated):
            world.access.viewer(text)
    assert not world.server.asked


def test_a_denial_counts_more_than_a_permission() -> None:
    world = World()
    world.server.denied = True
    assert not world.access.may(world.access.viewer("good"), "get", "team", "demo")


def test_a_token_that_was_withdrawn_is_forgotten_in_time() -> None:
    world = World()
    world.access.viewer("good")
    world.server.known = set()
    world.now = ALLOWED_SECONDS - 1
    assert world.access.viewer("good").name == "jane"
    world.now = ALLOWED_SECONDS
    with pytest.raises(Unauthenticated):
        world.access.viewer("good")
    assert not world.access.known("good"), "it waits behind the known ones from now on"


def test_a_token_of_nobody_is_refused() -> None:
    """Without a name, a review of what they may see would ask about nobody."""
    world = World()
    world.server.user = {"groups": ["devs"]}
    with pytest.raises(Unauthenticated):
        world.access.viewer("good")


def test_a_token_that_was_refused_may_be_valid_soon() -> None:
    world = World()
    world.server.known = set()
    with pytest.raises(Unauthenticated):
        world.access.viewer("good")
    world.server.known = {"good"}
    world.now = REFUSED_SECONDS
    assert world.access.viewer("good").name == "jane"


def test_a_user_of_whom_only_the_name_is_known_is_a_viewer() -> None:
    """API servers leave out what is empty."""
    world = World()
    world.server.user = {"username": "joe"}
    assert world.access.viewer("good") == Viewer("joe", "", (), ())


def test_what_was_used_longest_ago_gives_way_when_there_is_no_room() -> None:
    kept: _Remembered[int] = _Remembered(lambda: 0.0, 2)
    for key in (1, 2):
        kept.put(key, key, 60)
    kept.get(1)
    kept.put(3, 3, 60)
    assert [kept.get(key)[1] for key in (1, 2, 3)] == [1, None, 3]
