"""What surrounds a pool, where others are at the same names: one before it, a person, another leader."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_operator.builders.pool import PoolIdentity, PoolSettings, build_token_secret
from deepcoder_operator.kube import errors
from deepcoder_operator.sandbox.pool_objects import NameConflict, PoolObjects, StillEnding

SETTINGS = PoolSettings("sandbox:1", "deepcoder", {}, "deepcoder.dev/run")
FIRST, NEXT = (PoolIdentity("ml", "judges", uid) for uid in ("first", "next"))
SPEC = SandboxPoolSpec()


class API:
    """Objects by kind and name, of which each state has a version."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.version = 0
        self.edits = ""
        """Kind of which somebody else changes what is found, each time it was read."""

    async def find(self, resource: Any, _: str, name: str) -> dict[str, Any] | None:
        found = self.objects.get((resource.kind, name))
        if found is not None and resource.kind == self.edits:
            self._store(found)
        return found

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        if (obj["kind"], obj["metadata"]["name"]) in self.objects:
            raise errors.AlreadyExists("already exists", 409)
        return self._store(obj)

    async def apply(self, obj: dict[str, Any]) -> dict[str, Any]:
        there = self.objects.get((obj["kind"], obj["metadata"]["name"]), obj)
        asked = obj["metadata"].get("resourceVersion")
        if asked not in (None, there["metadata"].get("resourceVersion")):
            raise errors.Conflict("it has changed", 409)
        return self._store(obj)

    def _store(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        stored = obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self.version)}}
        self.objects[obj["kind"], obj["metadata"]["name"]] = stored
        return stored

    def collect_garbage(self) -> None:
        """What belonged to the pool goes."""
        self.objects.clear()

    def token(self) -> str:
        return base64.b64decode(self.objects["Secret", "judges-token"]["data"]["token"]).decode()


@pytest.fixture
def api() -> API:
    return API()


@pytest.fixture
def support(api: API) -> PoolObjects:
    kube: Any = api
    return PoolObjects(kube, SETTINGS, lambda: 0.0)


@pytest.mark.parametrize("kind", ["Secret", "Service"])
async def test_what_is_left_of_a_pool_that_had_the_name_is_waited_for(
    api: API, support: PoolObjects, kind: str
) -> None:
    await support.ensure(FIRST, 1, SPEC, 0)
    api.objects = {key: obj for key, obj in api.objects.items() if key[0] == kind}
    with pytest.raises(StillEnding, match=f"{kind} judges-"):
        await support.ensure(NEXT, 1, SPEC, 0)
    api.collect_garbage()
    await support.ensure(NEXT, 1, SPEC, 0)


@pytest.mark.parametrize("owner", [None, {"kind": "SandboxPool", "name": "others"}, {"kind": "Job", "name": "judges"}])
async def test_what_belongs_to_others_is_for_a_person_to_mend(
    api: API, support: PoolObjects, owner: dict[str, Any] | None
) -> None:
    secret = build_token_secret(FIRST, "x" * 43)
    secret["metadata"]["ownerReferences"] = [owner | {"uid": "u", "controller": True}] if owner else []
    await api.create(secret)
    with pytest.raises(NameConflict, match="delete or rename"):
        await support.ensure(NEXT, 1, SPEC, 0)


async def test_pools_that_a_run_has_one_after_the_other_have_one_token(api: API, support: PoolObjects) -> None:
    """The head of an attempt that was started in between has mounted the first one's."""
    await support.ensure(FIRST, 1, SPEC, 0, "run")
    before = api.token()
    support.forget(FIRST)
    api.collect_garbage()
    await support.ensure(NEXT, 1, SPEC, 0, "run")
    assert api.token() == before


async def test_token_is_another_in_the_pool_of_another_run_of_nobody_and_where_a_secret_was_deleted(
    api: API, support: PoolObjects
) -> None:
    seen = set()
    for generation, (pool, run) in enumerate([(FIRST, "run"), (FIRST, "run"), (NEXT, "other"), (FIRST, None)]):
        await support.ensure(pool, generation + 1, SPEC, 0, run)
        seen.add(api.token())
        api.collect_garbage()
    assert len(seen) == 4


async def test_pool_of_another_namespace_that_names_the_run_as_its_owner_gets_another_token(
    api: API, support: PoolObjects
) -> None:
    """Whoever may create pools there could else read the token of this run's judges."""
    await support.ensure(FIRST, 1, SPEC, 0, "run")
    before = api.token()
    api.collect_garbage()  # the other namespace is empty
    await support.ensure(PoolIdentity("other", "judges", "next"), 1, SPEC, 0, "run")
    assert api.token() != before


@pytest.mark.parametrize("kind", ["Service", "NetworkPolicy", "PodDisruptionBudget"])
async def test_what_somebody_has_changed_since_it_was_looked_at_is_not_applied_over(
    api: API, support: PoolObjects, kind: str
) -> None:
    """A leader that was stopped in between would undo what the next one has applied."""
    await support.ensure(FIRST, 1, SPEC, 0)
    await support.ensure(FIRST, 2, SPEC, 0)
    api.edits = kind
    with pytest.raises(errors.Conflict):
        await support.ensure(FIRST, 3, SPEC, 0)
