"""Finds a run's secrets, to remove them from stored program output: logs in its folder, text in its status.

The secrets are the values of all Secrets that its pods can read, of variables named like secrets, and of its bucket's
credentials. If one of them cannot be read, `Unknown` says which and why, and no program output may be stored.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.redaction import Redactor, TooManyForms, named_values, referred_secrets
from deepcoder_operator.domain.names import judges
from deepcoder_operator.domain.pool_names import token_secret_name
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SECRETS
from deepcoder_operator.storage.s3 import StorageProblem
from deepcoder_operator.storage.service import StorageService


class Unknown(Exception):
    """A secret is not known. The message says which, and why."""


async def redactor_of(
    kube: Kube, storage: StorageService, run: DeepCoderRun, pods: Iterable[Mapping[str, Any]]
) -> Redactor:
    """Return a redactor for the secrets of these pods, or pod templates, and of the run's bucket. Raises `Unknown`."""
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
    """Return what refers to Secrets in a stage's pods, from spec and status, without reading the pods."""
    stage, spec = run.spec.stages[stage_index].resources, run.spec
    references, used = (spec.checkpoint.s3.credentials_secret_ref, spec.model.credentials_secret_ref), judges(run)
    named = [reference.name for reference in references if reference]
    if used.secret is not None:
        named.append(used.secret)
    volumes: list[Object] = [{"secret": {"secretName": name}} for name in named]
    if used.pool is not None:  # of a pool that is gone the token opens nothing
        volumes.append({"secret": {"secretName": token_secret_name(used.pool), "optional": True}})
    groups = [group for group in (stage.head, stage.samplers, stage.learners) if group is not None]
    return [
        {"spec": {"volumes": volumes}},
        *({**group.template, "spec": group.template.get("spec") or {}} for group in groups),
    ]
