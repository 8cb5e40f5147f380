"""A whole run through the real operator, with all that its trainer would have stored, and users with their own rights.

For tests of what people see: clients, the command line, pages. It is played once for a module, in a thread with a loop
of its own, since the operator, KubeRay's stand-in and their namespace live as long as the tests that look.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import chart_account
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3_server
from free_ports import free_port
from loop_world import Cluster, cluster_in
from run_manifests import EVALUATE, LONGER, TRAIN
from waits import WAIT_SECONDS

from deepcoder_contracts.layout import log_key, metrics_key, samples_key
from deepcoder_operator.kube import access
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import SERVICE_ACCOUNTS, Resource
from deepcoder_trainer.evaluation.results import Comparison, DatasetResult, Estimate, EvaluationResults
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.samples import SCHEMA
from deepcoder_trainer.telemetry.metrics import metrics_line

Result = TypeVar("Result")

NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
SECONDS = 240.0
USERS = {"viewer": "{chart}-view", "editor": "edit", "stranger": None}
"""Account to the ClusterRole that is bound to it in the run's namespace."""


@dataclass
class PlayedRun:
    """What has been played, and a way into the loop in which it goes on."""

    cluster: Cluster
    loop: asyncio.AbstractEventLoop
    users: dict[str, Path] = field(default_factory=dict)
    """Kubeconfig of each user, with the run's namespace."""

    @property
    def namespace(self) -> str:
        """Of the run, which is named demo."""
        return self.cluster.namespace

    @property
    def endpoint(self) -> str:
        """Of the S3 server."""
        return self.cluster.s3.endpoint

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something in the loop of operator and stand-in."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)


@contextmanager
def playing(kubeconfig: Path, s3: s3_server.S3Server, helm: str, chart: Path, directory: Path) -> Iterator[PlayedRun]:
    """The run `demo`, Complete, in a namespace of its own."""
    ready: list[PlayedRun] = []
    failed: list[BaseException] = []
    told, over = threading.Event(), threading.Event()

    async def play() -> None:
        async with _stage(kubeconfig, s3, helm, chart, directory) as played:
            async with asyncio.timeout(SECONDS):
                await _play(played)
            ready.append(played)
            told.set()
            await asyncio.to_thread(over.wait)

    def run() -> None:
        try:
            asyncio.run(play())
        except BaseException as error:
            failed.append(error)
        finally:
            told.set()

    thread = threading.Thread(target=run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig))
        thread.start()
        told.wait()
    try:
        if ready:
            yield ready[0]
    finally:
        over.set()
        thread.join(SECONDS)
    if failed:
        raise failed[0]


@asynccontextmanager
async def _stage(
    kubeconfig: Path, s3: s3_server.S3Server, helm: str, chart: Path, directory: Path
) -> AsyncIterator[PlayedRun]:
    """The namespace with an operator, and users."""
    kube = Kube(access.find(), deadline=WAIT_SECONDS)
    namespace = f"played-{uuid.uuid4().hex[:8]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    try:
        await kube.post(NAMESPACES.path(None), body)
        objects = chart_account.render(helm, chart, namespace)
        async with (
            chart_account.account(kube, kubeconfig, objects, namespace, directory, people=True) as account,
            cluster_in(kube, account, s3, directory, free_port) as cluster,
        ):
            played = PlayedRun(cluster, asyncio.get_running_loop())
            for user, role in USERS.items():
                name = role.format(chart=f"{namespace}-deepcoder-operator") if role else None
                played.users[user] = await _user(kube, kubeconfig, namespace, user, name, directory)
            await cluster.start_operator()
            yield played
        await kube.delete(NAMESPACES, None, namespace)
    finally:
        await kube.close()


async def _user(kube: Kube, kubeconfig: Path, namespace: str, name: str, role: str | None, directory: Path) -> Path:
    """A kubeconfig of an account to which the role is bound in the namespace."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
    await kube.post(SERVICE_ACCOUNTS.path(namespace), account)
    if role:
        group = "rbac.authorization.k8s.io"
        binding = {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }  # fmt: skip
        await kube.post(ROLE_BINDINGS.path(namespace), binding)
    config = chart_account.with_token(kubeconfig, await chart_account.token(kube, namespace, name))
    config["contexts"][0]["context"]["namespace"] = namespace
    path = directory / f"{name}.kubeconfig"
    path.write_text(json.dumps(config))
    return path


async def _play(played: PlayedRun) -> None:
    """Two Train stages, the first of them with an attempt that crashes, and an evaluation."""
    cluster, standin = played.cluster, played.cluster.standin
    await cluster.create_run(stages=[TRAIN, LONGER, EVALUATE], failurePolicy={"backoff": {"initialSeconds": 0}})
    await cluster.until_running("demo-s0-a1")
    await standin.save("demo-s0-a1", 10)
    await _store(played, "demo-s0-a1", steps=range(1, 13), samples=(10,))
    await standin.leave("demo-s0-a1", 1, "Crashed")
    await cluster.until_running("demo-s0-a2")
    await _store(played, "demo-s0-a2", steps=range(11, 21), samples=(20,))
    await cluster.finish("demo-s0-a2")
    await cluster.until_running("demo-s1-a3")
    await _store(played, "demo-s1-a3", steps=range(1, 11), samples=(10,))
    await standin.save("demo-s1-a3", 10, final=True)
    await standin.leave("demo-s1-a3", 0, "Completed")
    await cluster.until_running("demo-s2-a4")
    results = RESULTS.to_json()
    await standin.save("demo-s2-a4", 0, final=True, results=results, **{"eval/held-back/pass_at_1": 0.5})
    await _store(played, "demo-s2-a4", steps=range(0), samples=())
    await standin.leave("demo-s2-a4", 0, "Completed")
    await cluster.until_phase("Complete")


HALF = Estimate(mean=0.5, low=0.1, high=0.9, over=4)
RESULTS = EvaluationResults(
    key="sha256:" + "e" * 64,
    inputs={"targets": [{"name": "long"}, {"name": "Base"}]},
    targets={
        target: {
            "held-back": DatasetResult(
                problems=4, samples=8, unjudged=0, pass_at_1=HALF, pass_at_k={"1": HALF, "2": HALF},
                truncated_ratio=0.25, response_tokens_mean=41.0, verdicts={"passed": 4, "wrong_answer": 4},
                notes=["sampled at another length"],
            )
        }
        for target in ("Base", "long")
    },
    comparisons=[Comparison(dataset="held-back", before="Base", after="long", difference=HALF, p_value=0.04)],
)  # fmt: skip
"""As the trainer writes them."""


async def _store(played: PlayedRun, attempt: str, *, steps: range, samples: tuple[int, ...]) -> None:
    """What an attempt's trainer stores beside its checkpoints."""
    config = await played.cluster.standin.config(attempt)
    root = config.storage.uri.removeprefix(f"s3://{s3_server.BUCKET}/")
    stage, ordinal = config.stage.name, config.ordinal
    lines = [
        metrics_line(
            StepReport(
                step=step, total_steps=step, verdicts={"passed": step, "wrong_answer": 32 - step},
                metrics={"reward_mean": step / 32, "truncated_ratio": 0.1, "response_tokens_mean": 40.0 + step},
                phase_seconds={"train": 2.0, "wait_batch": 1.0}, groups=(),
            ),
            stage, 1_700_000_000.0 + 100 * ordinal + step,
        )
        for step in steps
    ]  # fmt: skip
    if lines:
        _put(played, f"{root}/{metrics_key(stage, ordinal)}", "\n".join(lines).encode())
    for step in samples:
        table = pa.Table.from_pylist([_sample(step, index) for index in range(8)], schema=SCHEMA)
        out = io.BytesIO()
        pq.write_table(table, out)
        _put(played, f"{root}/{samples_key(stage, step)}", out.getvalue())
    _put(
        played, f"{root}/{log_key(stage, ordinal, 'driver.log')}", f"attempt {ordinal} began\nits last line\n".encode()
    )


def _sample(step: int, index: int) -> dict[str, Any]:
    right = index % 4 == 0
    return {
        "step": step, "group_id": index // 4, "index": index % 4, "problem_id": f"problem-{index // 4}",
        "prompt": "Print the sum.", "response": f"```python\nprint({index})\n```\x1b[31m", "reward": float(right),
        "verdict": "passed" if right else "wrong_answer", "finish": "stop", "prompt_tokens": 5, "response_tokens": 12,
        "limit_tokens": 64, "admitted_version": 0, "versions": [{"version": 0, "start": 0, "end": 12}],
        "judge_seconds": 0.1, "judge_attempts": 1, "draw": 0, "dropped": index == 7,
    }  # fmt: skip


def _put(played: PlayedRun, key: str, data: bytes) -> None:
    client: Any = played.cluster.s3.client()
    client.put_object(Bucket=s3_server.BUCKET, Key=key, Body=data)
