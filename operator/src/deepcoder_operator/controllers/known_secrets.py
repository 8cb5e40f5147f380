"""What of a run is secret, for whatever is kept of its programs' words: logs in its folder, last lines in its status.

Values are those of all Secrets that its pods can read, of variables that are named as secrets are, and of its bucket's
credentials. Where one of them cannot be known, `Unknown` says which and why, and none of the words may be kept.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.redaction import Redactor, TooManyForms, named_values, referred_secrets
from deepcoder_operator.domain.names import pool_name
from deepcoder_operator.domain.pool_names import token_secret_name
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SECRETS
from deepcoder_operator.storage.s3 import StorageProblem
from deepcoder_operator.storage.service import StorageService


class Unknown(Exception):
    """A secret that cannot be sought; the message says which, and why."""


async def redactor_of(
    kube: Kube, storage: StorageService, run: DeepCoderRun, pods: Iterable[Mapping[str, Any]]
) -> Redactor:
    """What takes the secrets of these pods, or templates of pods, and of the run's bucket out; raises `Unknown`."""
    pods = list(pods)
    values, name = set(named_values(pods)), ""
    try:
        credentials = await storage.credentials(run)
        keys = (credentials.secret_key, credentials.access_key, credentials.session_token or "")
        values |= {key.encode() for key in keys}
        for name, optional in referred_secrets(pods).items():
            found = await kube.find(SECRETS, run.metadata.namespace, name)
            if found is None and not optional:
                raise Unknown(f"Secret {name} is gone")
            values |= {base64.b64decode(value) for value in ((found or {}).get("data") or {}).values()}
        return Redactor(values)
    except (errors.KubeError, binascii.Error) as e:
        what = f"Secret {name}" if name else "the bucket's Secret"
        raise Unknown(f"{what} cannot be read ({type(e).__name__}: {e})"[:200]) from e
    except StorageProblem as e:
        raise Unknown(f"{e.problem.reason}: {e.problem.message}"[:200]) from e
    except TooManyForms as e:
        raise Unknown(str(e)) from e


def templates_of(run: DeepCoderRun, stage_index: int) -> list[Object]:
    """What the pods of a stage are made from, as far as Secrets go, without asking for the pods."""
    stage, spec = run.spec.stages[stage_index].resources, run.spec
    named = [r for r in (spec.checkpoint.s3.credentials_secret_ref, spec.model.credentials_secret_ref) if r]
    if spec.sandbox.together is not None:
        named.append(spec.sandbox.together.credentials_secret_ref)
    volumes: list[Object] = [{"secret": {"secretName": reference.name}} for reference in named]
    if (pool := pool_name(run)) is not None:  # of a pool that is gone the token opens nothing
        volumes.append({"secret": {"secretName": token_secret_name(pool), "optional": True}})
    groups = [group for group in (stage.head, stage.samplers, stage.learners) if group is not None]
    return [
        {"spec": {"volumes": volumes}},
        *({**group.template, "spec": group.template.get("spec") or {}} for group in groups),
    ]
