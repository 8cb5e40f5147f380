"""What the operator does without, since a thousand runs have to fit: whole libraries, copies, pods, descriptions."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
from pool_passes import Harness
from run_manifests import run_manifest

from deepcoder_operator.builders.podtemplate import merge
from deepcoder_operator.controllers.watch import _settings
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.resources import RUNS
from deepcoder_operator.storage.s3 import Buckets, Credentials, Target


def test_official_clients_and_their_types_are_not_imported_even_where_they_are_installed() -> None:
    script = (
        "import sys, deepcoder_operator.app\n"
        "unused = {'kubernetes', 'boto3', 's3transfer', 'pykube', 'jwt'}\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & unused))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == []


def test_kopf_copies_no_object_that_it_hands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four copies of each event of each run took as long as all that is done about it."""
    persistence = _settings().persistence
    body: Any = {"spec": {"a": [1, 2]}, "metadata": {"annotations": {"x": "y"}}}
    copied: list[Any] = []
    monkeypatch.setattr("copy.deepcopy", copied.append)
    essence = persistence.diffbase_storage.build(body=body, extra_fields=[])
    assert persistence.progress_storage.clear(essence=essence) == {}
    assert persistence.diffbase_storage.fetch(body=body) is None
    assert copied == []


def run(version: str, generation: int, uid: str = "u") -> dict[str, Any]:
    made = run_manifest("ml") | {"status": {"phase": version}}
    made["metadata"] |= {"uid": uid, "resourceVersion": version, "generation": generation}
    return made


def test_spec_of_which_there_is_no_new_version_is_kept_once() -> None:
    before = trim_for_cache(RUNS, run("1", 1))
    after = trim_for_cache(RUNS, run("2", 1), before)
    assert after["spec"] is before["spec"]
    assert after == trim_for_cache(RUNS, run("2", 1))


@pytest.mark.parametrize(("generation", "uid"), [(2, "u"), (1, "another"), (1, "u")])
def test_spec_that_differs_is_taken_even_of_one_generation_as_two_crds_serve_it(generation: int, uid: str) -> None:
    newer = run("2", generation, uid)
    newer["spec"]["suspend"] = True
    assert trim_for_cache(RUNS, newer, trim_for_cache(RUNS, run("1", 1)))["spec"]["suspend"] is True


def test_merged_template_shares_nothing_with_what_it_was_made_of() -> None:
    base = {"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}], "volumes": [{"name": "v"}]}}
    over = {"spec": {"containers": [{"name": "a", "args": ["x"]}], "tolerations": [{"key": "k"}]}}
    first, second = deepcopy(base), deepcopy(over)
    out = merge(base, over)
    out["spec"]["containers"][0]["env"][0]["value"] = "changed"
    out["spec"]["containers"][0]["args"].append("y")
    out["spec"]["tolerations"][0]["key"] = "changed"
    out["spec"]["volumes"].append({"name": "w"})
    assert (base, over) == (first, second)


def test_merging_long_lists_compares_each_name_once_or_not_at_all() -> None:
    """A template of ten thousand volumes took longer than the Lease's renewal, and ended the leader."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    def volumes(source: str) -> dict[str, Any]:
        return {"volumes": [{"name": Name(f"v{n}"), source: {}} for n in range(500)]}

    onto, empty = merge(volumes("emptyDir"), volumes("secret")), merge({"volumes": []}, volumes("secret"))
    assert compared <= 1000
    assert onto == empty == volumes("secret")


def test_element_whose_name_is_no_name_is_left_to_the_api_servers_refusal() -> None:
    odd = {"volumes": [{"name": ["x"]}, {"name": {}}, "no map"]}
    assert merge(odd, odd) == {"volumes": odd["volumes"] * 2}


async def test_of_judges_that_are_listed_before_some_are_made_only_what_is_read_is_kept() -> None:
    """Four hundred judges with a megabyte in a variable of their template were more than the operator's memory."""
    harness = Harness()
    harness.api.quota = 10
    judge = {"name": "judge", "env": [{"name": "X", "value": "long" * 99}]}
    harness.edit(minReplicas=1, template={"spec": {"containers": [judge]}})
    await harness.passes(1)
    harness.edit(minReplicas=2, template=harness.pool["spec"]["template"])
    await harness.passes(1)
    assert len(harness.live()) == 2
    assert "longlong" in repr(harness.live())
    assert len(harness.api.listed) == 1
    assert "longlong" not in repr(harness.api.listed)


def test_client_of_s3_knows_our_calls_alone() -> None:
    buckets = Buckets()
    buckets.open(Target("http://127.0.0.1:1", None, Credentials("a", "b")), "deepcoder")
    (made,) = buckets._clients.values()
    model = made.client.meta.service_model
    assert {"GetObject", "HeadObject", "PutObject", "ListObjectsV2", "DeleteObjects"} < set(model.operation_names)
    assert len(model.operation_names) < 10
    assert made.client.can_paginate("list_objects_v2")
