"""The stage config of an attempt, in an immutable ConfigMap that its head mounts.

The ConfigMap is named after its content, so a RayJob's head mounts exactly the config that the RayJob was created with.
It is deleted together with the RayJob. If an operator dies between ConfigMap and RayJob, the next one may create a
ConfigMap with other content (a newer release, an edited spec, a new certificate authority). The first one is then
unused and is deleted with the run.
"""

from __future__ import annotations

import hashlib
import json

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.api.run_status import ProvenanceStatus
from deepcoder_contracts.api.stage import Stage
from deepcoder_contracts.sizing import pod_gpus, processes
from deepcoder_contracts.stage import (
    JudgeBackend,
    JudgeEndpoint,
    ProgressEndpoint,
    Provenance,
    StageConfig,
    StageResources,
    StageSettings,
    Storage,
    TogetherEndpoint,
)
from deepcoder_operator.builders.meta import Object, metadata
from deepcoder_operator.builders.settings import TrainerSettings
from deepcoder_operator.domain.names import LABEL_ORDINAL, LABEL_STAGE, pool_name
from deepcoder_operator.domain.pool_names import JUDGE_PORT, judge_host
from deepcoder_operator.domain.resolve import ResolvedConfig, identity, storage_uri

CONFIG_DIRECTORY = "/etc/deepcoder"
STAGE_FILE = "stage.json"
CA_FILE = "ca.crt"
JUDGE_TOKEN = "judge/token"  # noqa: S105  a path
PROGRESS_TOKEN = "progress/token"  # noqa: S105  a path

_DIGEST_LENGTH = 10


def build_stage_config(
    run: DeepCoderRun,
    attempt: AttemptStatus,
    config: ResolvedConfig,
    provenance: ProvenanceStatus,
    settings: TrainerSettings,
) -> StageConfig:
    """Build the stage config of the attempt."""
    stage = run.spec.stages[attempt.stage_index]
    meta, checkpoint = run.metadata, run.spec.checkpoint
    lengths = [stage.context_tokens, stage.evaluate.context_tokens if stage.evaluate else None]
    return StageConfig(
        run=identity(run),
        stage=_stage_settings(stage, attempt.stage_index, config),
        earlier_stages=[s.name for s in run.spec.stages[: attempt.stage_index]],
        longest_context_tokens=max(n for n in lengths if n),
        ordinal=attempt.ordinal,
        model=config.model,
        dataset=config.dataset,
        recipe=stage.recipe.over(config.recipe) if stage.recipe else config.recipe,
        parent=attempt.parent,
        storage=Storage(
            uri=storage_uri(run),
            region=checkpoint.s3.region,
            endpoint=checkpoint.s3.endpoint,
            every_steps=checkpoint.every_steps,
            keep_last=checkpoint.keep_last,
            keep_every=checkpoint.keep_every,
            drain_seconds=checkpoint.drain_seconds,
        ),
        judge=_judge(run),
        progress=ProgressEndpoint(
            url=f"{settings.progress_url}/v1/runs/{meta.namespace}/{meta.name}/progress",
            ca_file=f"{CONFIG_DIRECTORY}/{CA_FILE}",
            token_file=f"{CONFIG_DIRECTORY}/{PROGRESS_TOKEN}",
        ),
        provenance=Provenance(config_digest=provenance.config_digest, image=provenance.image),
    )


def _judge(run: DeepCoderRun) -> JudgeEndpoint:
    token_file = f"{CONFIG_DIRECTORY}/{JUDGE_TOKEN}"
    hosted = run.spec.sandbox.together
    if hosted is not None:
        together = TogetherEndpoint(endpoint=hosted.endpoint, concurrency=hosted.concurrency, key_file=token_file)
        return JudgeEndpoint(backend=JudgeBackend.TOGETHER, together=together)
    pool = pool_name(run)
    assert pool is not None, "the API sees to it"
    host = judge_host(pool, run.metadata.namespace)
    return JudgeEndpoint(backend=JudgeBackend.POOL, host=host, port=JUDGE_PORT, token_file=token_file)


def _stage_settings(stage: Stage, index: int, config: ResolvedConfig) -> StageSettings:
    samplers, learners = processes(stage, config.recipe.tensor_parallel)
    groups = [g for g in (stage.resources.samplers, stage.resources.learners) if g]
    return StageSettings(
        name=stage.name,
        index=index,
        type=stage.type,
        context_tokens=stage.context_tokens,
        rope=stage.rope,
        max_steps=stage.max_steps or 0,
        optimizer=stage.optimizer,
        placement=stage.placement,
        resources=StageResources(
            samplers=samplers,
            learners=learners,
            accelerators=any(pod_gpus(g.template.get("spec") or {}) for g in groups),
        ),
        evaluate=stage.evaluate,
        promote_when=stage.promote_when,
        stall_seconds=stage.stall_seconds,
    )


def build_stage_config_map(run: DeepCoderRun, config: StageConfig, attempt: str, ca_bundle: str) -> Object:
    """Build the attempt's ConfigMap, `<run>-s<index>-a<ordinal>-<digest>`."""
    data = {STAGE_FILE: config.to_json().decode(), CA_FILE: ca_bundle}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    labels = {LABEL_STAGE: config.stage.name, LABEL_ORDINAL: str(config.ordinal)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(run, f"{attempt}-{digest[:_DIGEST_LENGTH]}", labels),
        "immutable": True,
        "data": data,
    }
