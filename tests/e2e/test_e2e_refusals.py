"""A user's mistake is reported at once, with the field and the fix, and costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2e_world import TIMEOUT, World
from kubernetes import client

from deepcoder_demo.platform import delete_and_wait

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_an_invalid_manifest_is_refused_by_the_api_server_with_field_and_mend(world: World) -> None:
    manifest = world.small_run("e2e-invalid")
    manifest["spec"]["sandbox"]["poolRef"] = {"name": "shared"}
    manifest["spec"]["sandbox"]["template"] = {}
    with pytest.raises(client.ApiException, match=r"spec\.sandbox.*exactly one of sandbox\.poolRef"):
        world.create(manifest)


def test_wrong_credentials_are_said_in_a_condition_and_no_trainer_is_made(
    world: World, start_run: Callable[..., str]
) -> None:
    secret = client.V1Secret(
        metadata=client.V1ObjectMeta(name="e2e-wrong"),
        string_data={"AWS_ACCESS_KEY_ID": world.cluster.s3.access_key, "AWS_SECRET_ACCESS_KEY": "not-the-secret"},
    )
    delete_and_wait(world.cluster, "secret", "e2e-wrong", world.namespace, seconds=60)  # of a test that was killed
    world.core.create_namespaced_secret(world.namespace, secret, _request_timeout=TIMEOUT)
    try:

        def use_it(manifest: dict[str, Any]) -> None:
            manifest["spec"]["checkpoint"]["s3"]["credentialsSecretRef"] = {"name": "e2e-wrong"}

        name = start_run("e2e-refused", change=use_it)
        refusal = world.wait_for(
            name,
            "Accepted=False",
            lambda s: next(
                (c for c in s.get("conditions", []) if c["type"] == "Accepted" and c["status"] == "False"), None
            ),
            60,
        )
        assert refusal["reason"] == "CredentialsRefused"
        assert "e2e-wrong" in refusal["message"]
        assert "not-the-secret" not in str(world.run(name))
        assert world.rayjobs(name) == []
    finally:
        delete_and_wait(world.cluster, "secret", "e2e-wrong", world.namespace, seconds=60)
