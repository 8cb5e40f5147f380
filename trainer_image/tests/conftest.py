"""What trainer tests share: batches, stage configs, judges, and a real S3 server if one is built."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import pytest_asyncio
import s3_server as versitygw
from frozen_heap import kept_frozen
from lazy_modules import LOADED
from tiny_models import (  # noqa: F401  # fixtures of all tests
    VOCABULARY,
    coder_model,
    make_coder_model,
    make_learner,
    tiny_model,
)
from together_api import KEY, TogetherAPI, together_api

from deepcoder_contracts.manifest import RunIdentity
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.endpoints import Endpoints
from deepcoder_trainer.judge.together import transport
from deepcoder_trainer.transformers_import import fast_transformers_import
from deepcoder_trainer.types import Batch, Finish, Generation, Group, Outcome, Sample, VersionSpan

# Tests and what they start share cores: threads that spin at a barrier cost what others would compute with. Read when
# torch is loaded, in this process and in those that it starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_configure(config: pytest.Config) -> None:
    """DCP warns whenever one rank saves without a process group, which is meant; whichever test loads transformers
    loads it as the trainer does; and what has been loaded is not searched for garbage whenever an engine ends."""
    config.addinivalue_line("filterwarnings", "ignore:torch.distributed is disabled:UserWarning")
    lean = ExitStack()
    lean.enter_context(fast_transformers_import())
    lean.enter_context(kept_frozen())
    config.add_cleanup(lean.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs, each a minute or more, come first: at the end they would be waited for. Engines come last: what vLLM
    makes of a process is undone after each of their files as far as it is known (see `no_engine_is_left`)."""
    runs = {item.path for item in items if hasattr(getattr(item, "module", None), "RealRun")}
    engines = {item.path for item in items if item.get_closest_marker("vllm")} - runs
    items.sort(key=lambda item: (item.path not in runs) + (item.path in engines))


def pytest_collection_finish(session: pytest.Session) -> None:
    """For the test of what collecting has loaded."""
    session.config.stash[LOADED] = {name for name in sys.modules if "." not in name}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A temporary folder of the test's own, with a name so short that a judge's socket fits below it."""
    with tempfile.TemporaryDirectory(prefix="dc", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module", autouse=True)
def no_engine_is_left() -> Iterator[None]:
    """An engine of vLLM's that ran in this process leaves torch's process group, which the learners of other files
    would take for theirs, a `set_num_threads` that does nothing, its environment, and what it has loaded."""
    before = dict(os.environ)
    yield
    state = sys.modules.get("vllm.distributed.parallel_state")
    if state is None:
        return
    import torch

    state.destroy_model_parallel()
    state.destroy_distributed_environment()
    torch.set_num_threads = torch._C.set_num_threads
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def two_gpus() -> None:
    """Skips where there are fewer."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Makes a random batch: rewards of 0 and 1, some truncated, some quarantined on request."""

    def make(
        seed: int = 0,
        groups: int = 4,
        size: int = 4,
        *,
        step: int = 1,
        longest: int = 12,
        quarantined: float = 0.0,
        behaviour: Callable[[Sample], Any] | None = None,
    ) -> Batch:
        rng = np.random.default_rng(seed)
        made = []
        for g in range(groups):
            prompt = rng.integers(0, VOCABULARY, rng.integers(2, 9)).astype(np.int32)
            samples = []
            for i in range(size):
                length = int(rng.integers(1, longest + 1))
                sample = Sample(
                    group_id=g,
                    index=i,
                    prompt_ids=prompt,
                    generation=Generation(
                        output_ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
                        logprobs=(-rng.gamma(2.0, 2.0, length)).astype(np.float32),
                        finish=Finish.LENGTH if rng.random() < 0.3 else Finish.STOP,
                        text=f"text {g}/{i} é",
                        versions=(VersionSpan(3, 0, length),),
                    ),
                    outcome=Outcome(
                        reward=None if rng.random() < quarantined else float(rng.random() < 0.5),
                        verdict="passed",
                        seconds=0.25,
                    ),
                    limit=longest,
                )
                if behaviour is not None:
                    generation = sample.generation
                    logprobs = np.asarray(behaviour(sample), np.float32)
                    sample = Sample(
                        **{**vars(sample), "generation": Generation(**{**vars(generation), "logprobs": logprobs})}
                    )
                samples.append(sample)
            made.append(Group(g, f"problem-{g}", 3, tuple(samples)))
        return Batch(step, tuple(made))

    return make


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A recipe in float32 with a learning rate that is visible after one step."""

    def make(**overrides: Any) -> Recipe:
        settings: dict[str, Any] = {
            "prompts_per_step": 4,
            "group_size": 4,
            "learning_rate": 1e-3,
            "temperature": 0.8,
            "precision": "Float32",
            "max_prompt_tokens": 16,
            **overrides,
        }
        return Recipe(**settings)

    return make


RUN = RunIdentity(namespace="local", name="demo", uid="11111111-2222-3333-4444-555555555555")
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def make_config(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> Callable[..., StageConfig]:
    """A Train stage's config whose storage is a folder of the test."""

    def make(*, recipe: Recipe | None = None, learners: int = 1, **overrides: Any) -> StageConfig:
        storage = overrides.pop("storage", None) or Storage(uri=f"file://{tmp_path}/store", keep_last=2)
        settings: dict[str, Any] = {
            "run": RUN,
            "stage": {
                "name": overrides.pop("stage", "short"),
                "index": overrides.pop("index", 0),
                "type": "Train",
                "context_tokens": 16,
                "max_steps": 10,
                "resources": {"learners": learners},
            },
            "longest_context_tokens": 16,
            "ordinal": 1,
            "model": {"uri": "/model"},
            "dataset": {"uri": "/problems.jsonl"},
            "recipe": recipe or make_recipe(),
            "storage": storage,
            "provenance": {"config_digest": DIGEST},
            **overrides,
        }
        return StageConfig(**settings)

    return make


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def stored_config(request: pytest.FixtureRequest, make_config: Callable[..., StageConfig]) -> StageConfig:
    """A Train stage's config on each kind of storage."""
    if request.param == "file":
        return make_config()
    server = request.getfixturevalue("s3")
    return make_config(storage=Storage(uri=f"s3://{server.bucket}/{uuid4()}", endpoint=server.endpoint, keep_last=2))


@dataclass(frozen=True)
class S3Server:
    """A running S3 server with a bucket of its own."""

    endpoint: str
    bucket: str
    root: Path
    """Where its posix back end keeps the bucket's objects."""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that lives as long as the test session; skips where it has not been built."""
    program = versitygw.program()
    if program is None:
        pytest.skip("versitygw is not built: run `python -m devcluster build`")
    directory = tmp_path_factory.mktemp("s3")
    with versitygw.running(directory, program) as server:
        yield S3Server(server.endpoint, versitygw.BUCKET, directory / "s3" / "buckets" / versitygw.BUCKET)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in this process's environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", versitygw.ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", versitygw.SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return s3_server


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this machine for a module's tests of actors; nothing of it outlives them. If it were kept for
    those of other modules, it would take more CPU time unused than another start does."""
    import ray

    from deepcoder_trainer.cluster import start_ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    start_ray(
        num_cpus=4,
        num_gpus=0,
        resources={"learner": 6, "sampler": 4},
        object_store_memory=256 << 20,
        configure_logging=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two processes that run functions together over gloo; each of them keeps a model."""
    from gloo_ranks import GlooRanks

    ranks = GlooRanks(2, tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@pytest_asyncio.fixture
async def hosted_api() -> AsyncIterator[TogetherAPI]:
    """Together's API, played on loopback."""
    async with together_api() as (api, api.url):
        yield api


@pytest_asyncio.fixture
async def hosted_judge(
    hosted_api: TogetherAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[JudgeClient]:
    """Who asks it, by a key in the file `key`, at most three submissions at once."""
    monkeypatch.setattr(transport, "PAUSE_SECONDS", 0.01)
    (tmp_path / "key").write_text(f"{KEY}\n")
    endpoints = Endpoints([hosted_api.url], limit=3)
    client = JudgeClient(endpoints, transport.TogetherTransport(tmp_path / "key"), patience=30)
    yield client
    await client.close()
