"""What does a checkpoint cost the training that goes on? A real learner rank, the real writer, a real S3 server.

    make bench-checkpoint                       about two minutes, both cores busy
    python benchmarks/checkpoint.py --tiny      seconds, to see that it works: its figures mean nothing

One rank in this process trains a model of 7 million parameters on 16,384 tokens a step. Some steps are alone; after
each of the others all of its state (weights and both moments of Adam, 12 bytes a parameter) is copied aside, uploaded
to versitygw on this machine while the next step trains, and committed with the finished batch that strict one-off
pipelining has at every step's end: as many samples as tokens and lengths give, with their texts.

    stall_ratio     training stood still for a save, over the time of a step: at most 1 %. Both calls that the trainer
                    awaits, by the clock: the wait for the save before with the copy, and the commit's start
    slowdown_ratio  a step beside an upload, over a step alone. No target: on a machine whose cores are all busy with
                    training, hashing and sending take theirs from it
    upload_ratio    our MB/s over those of plain boto3 `upload_file` on the same files: at least 1, though ours are
                    hashed with SHA-256 in parts and as a whole, and boto3's once, for its signature. Client and server
                    fill two cores here, so this is a ratio of CPU time, which `upload_cpu_seconds` and
                    `plain_cpu_seconds` tell of this process's part

A model that is larger by some factor, on a device that is faster by the same, stalls for the same share of a step; what
is beyond that is what its copy to the host takes, which was not measured on a GPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import boto3
import torch
from checkpoint_load import FULL, TINY, Sizes, finished_batch, make_step, stage_config, write_model
from page_head import commit, machine

from deepcoder_contracts.manifest import FileEntry
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.state import PipelineState, save_state
from deepcoder_trainer.checkpoint.transfer import upload_files
from deepcoder_trainer.checkpoint.writer import CheckpointWriter, SaveTimes
from deepcoder_trainer.grpo.pack import OptimizerStep
from deepcoder_trainer.learner.files import RankFiles
from deepcoder_trainer.learner.rank import LearnerRank
from deepcoder_trainer.learner.rank_settings import RankSettings
from deepcoder_trainer.types import Group
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

MOST_STALL, LEAST_UPLOAD = 0.01, 1.0
BUCKET = "runs"
CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "bench-access", "AWS_SECRET_ACCESS_KEY": "bench-secret"}


@dataclass(frozen=True)
class Measured:
    """What was seen, in seconds."""

    parameters: int
    alone: list[float]
    """Each step without a save."""
    beside: list[float]
    """Each step beside the upload of the save before it."""
    saves: list[SaveTimes]
    stalls: list[float]
    """Between the end of a step and the start of the next, for each save, by the clock."""
    batch: int
    """Bytes of the finished batch in each checkpoint."""
    size: int
    """Bytes of one save's learner files."""
    ours: list[float]
    plain: list[float]
    ours_cpu: list[float]
    """CPU seconds of this process for each upload."""
    plain_cpu: list[float]

    @property
    def step(self) -> float:
        """A step alone."""
        return statistics.median(self.alone)


class RankAlone:
    """The part of the `Learner` protocol that saving needs, over one rank in this process, as its actor has it."""

    def __init__(self, rank: LearnerRank) -> None:
        self._rank = rank
        self._files = RankFiles(rank)
        self.threads = torch.get_num_threads()

    async def save(self, directory: str) -> None:
        """Copy aside."""
        await asyncio.to_thread(self._rank.save, Path(directory))

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        """Write and put, in a thread beside training."""
        return await asyncio.to_thread(self._files.upload, directory, storage, prefix)


@contextlib.contextmanager
def s3_server(root: Path) -> Iterator[str]:
    """versitygw over a folder of this machine; its endpoint."""
    program = Artifacts(cache_root(), doctor.go_version()).programs()["versitygw"]
    if not program.exists():
        print("versitygw is not built: run `python -m devcluster build`", file=sys.stderr)
        raise SystemExit(64)
    (root / BUCKET).mkdir(parents=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(CREDENTIALS)
    os.environ.pop("AWS_SESSION_TOKEN", None)
    settings = {
        "ROOT_ACCESS_KEY_ID": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "ROOT_SECRET_ACCESS_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        "VGW_PORT": f"127.0.0.1:{port}",
    }
    with subprocess.Popen(
        [program, str(root)],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            deadline = time.monotonic() + 30
            while not _listens(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("versitygw does not listen")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


async def train_and_save(
    rank: LearnerRank,
    step: list[OptimizerStep],
    groups: tuple[Group, ...],
    config: StageConfig,
    folder: Path,
    steps: int,
) -> tuple[list[float], list[float], list[SaveTimes], list[float]]:
    """Steps alone, steps beside uploads, what each save took, and how long each held up training."""
    saves: list[SaveTimes] = []
    stalls: list[float] = []

    async def train() -> float:
        began = time.monotonic()
        await asyncio.to_thread(rank.train, step)
        return time.monotonic() - began

    writer = CheckpointWriter(config, RankAlone(rank), workdir=folder)  # type: ignore[arg-type]
    writer.on_commit = lambda _: saves.append(writer.times) if writer.times else None
    await writer.claim()
    await train()
    alone = [await train() for _ in range(steps)]
    beside = []
    for number in range(1, steps + 2):
        if number > 1:
            beside.append(await train())
        began = time.monotonic()
        await writer.copy(number)
        state = PipelineState(step=number, total_steps=number, version=number, next_group_id=number, groups=groups)
        await writer.commit(state, metrics={})
        stalls.append(time.monotonic() - began)
    await writer.wait()
    return alone, beside, saves, stalls


def upload_in_turns(
    rank: LearnerRank, storage: Storage, folder: Path, times: int
) -> tuple[int, list[Took], list[Took]]:
    """Bytes of a save's files; what our upload took, and boto3's own."""
    rank.save(folder)
    files = rank.saved(folder).files()
    store = open_run_storage(storage)
    client = boto3.client("s3", endpoint_url=storage.endpoint, region_name="us-east-1")

    def plainly(number: int) -> None:
        for path in files:
            client.upload_file(str(path), BUCKET, f"plain-{number}/{path.name}")

    ours, plain = [], []
    for number in range(times + 1):  # the first of each opens connections
        ours.append(took(lambda n=number: upload_files(store, f"ours-{n}", folder, files)))
        plain.append(took(lambda n=number: plainly(n)))
        store.delete_prefix(f"ours-{number}/")
    return sum(path.stat().st_size for path in files), ours[1:], plain[1:]


class Took(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float
    """Of this process, all its threads."""


def took(work: Callable[[], object]) -> Took:
    """What it takes."""
    began, cpu = time.monotonic(), time.process_time()
    work()
    return Took(time.monotonic() - began, time.process_time() - cpu)


def measure(sizes: Sizes) -> Measured:
    """All of it, in a folder that goes."""
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as name, s3_server(Path(name) / "s3") as endpoint:
        folder = Path(name)
        parameters = write_model(folder / "model", sizes)
        recipe = Recipe(precision="Float32", learning_rate=1e-6, optimizer_steps=1)
        settings = RankSettings(
            str(folder / "model"), recipe, run_seed=0, accelerators=False, threads=None, collective_timeout_s=60
        )
        rank = LearnerRank(settings, 0, 1)
        storage = Storage(uri=f"s3://{BUCKET}/run", endpoint=endpoint, keep_last=1)
        config, step, groups = stage_config(storage, recipe, sizes), make_step(sizes), finished_batch(sizes)
        state = PipelineState(step=0, total_steps=0, version=0, next_group_id=0, groups=groups)
        batch = sum(path.stat().st_size for path in save_state(state, folder / "batch"))
        alone, beside, saves, stalls = asyncio.run(
            train_and_save(rank, step, groups, config, folder / "work", sizes.steps)
        )
        size, ours, plain = upload_in_turns(rank, storage, folder / "again", sizes.uploads)
        rank.close()
    walls, cpus = ([[each[i] for each in uploads] for uploads in (ours, plain)] for i in range(2))
    return Measured(parameters, alone, beside, saves, stalls, batch, size, *walls, *cpus)


def summarize(m: Measured, *, tiny: bool) -> dict[str, Any]:
    """The figures, and which targets were missed."""
    speed, plain = (m.size / 1e6 / statistics.median(times) for times in (m.ours, m.plain))
    figures = {
        "stall_ratio": statistics.mean(m.stalls) / m.step,
        "slowdown_ratio": statistics.median(m.beside) / m.step,
        "upload_ratio": speed / plain,
        "upload_mb_s": speed,
        "plain_mb_s": plain,
        "upload_cpu_seconds": statistics.median(m.ours_cpu),
        "plain_cpu_seconds": statistics.median(m.plain_cpu),
        "step_seconds": m.step,
        "copy_seconds": statistics.median(save.copy for save in m.saves),
        "waited_seconds": max(save.waited for save in m.saves),
        "bytes": m.size,
        "batch_bytes": m.batch,
        "parameters": m.parameters,
    }
    missed = {
        "stall_ratio": figures["stall_ratio"] > MOST_STALL,
        "upload_ratio": figures["upload_ratio"] < LEAST_UPLOAD,
    }
    return {**figures, "tiny": tiny, "unmet": [] if tiny else [name for name, is_missed in missed.items() if is_missed]}


def table(m: Measured) -> str:
    """Each save, and the step that trained beside it."""
    rows = [
        f"| {n} | {save.waited:.3f} | {save.copy:.3f} | {stall:.3f} | {stall / m.step:.2%} | {save.upload:.1f} "
        f"| {beside} |"
        for n, (save, stall, beside) in enumerate(
            zip(m.saves, m.stalls, [*(f"{s:.2f}" for s in m.beside), ""], strict=True), 1
        )
    ]
    head = "| save | waited (s) | copied (s) | held up (s) | of a step | upload and commit (s) | step beside it (s) |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def listed(values: Sequence[float]) -> str:
    """Figures beside each other."""
    return ", ".join(f"{value:.2f}" for value in values)


def page(code: str, m: Measured, figures: dict[str, Any]) -> str:
    """The dated page."""
    meaning = "**Toy sizes: these figures mean nothing.**\n\n" if figures["tiny"] else ""
    return f"""# Checkpoints, {datetime.date.today().isoformat()}

Commit {code}, torch {torch.__version__}, {machine()}.
`make bench-checkpoint` repeats it, `benchmarks/checkpoint.py` says what is measured.

{meaning}**No GPU was used**: one learner rank on CPUs trains {m.parameters / 1e6:.1f} million parameters; its state,
{m.size / 1e6:.0f} MB a save and a finished batch of {m.batch / 1e6:.2f} MB, goes to versitygw on the same machine
while the next step trains on the same cores.

| figure | measured | target |
|---|---|---|
| training stands still, of a step (`stall_ratio`) | {figures["stall_ratio"]:.2%} | at most {MOST_STALL:.0%} |
| a step beside an upload, of a step alone (`slowdown_ratio`) | {figures["slowdown_ratio"]:.2f} | none |
| our upload, of boto3's `upload_file` (`upload_ratio`) | {figures["upload_ratio"]:.2f} | at least {LEAST_UPLOAD:g} |
| our upload, MB/s | {figures["upload_mb_s"]:.0f} | |
| boto3's, MB/s | {figures["plain_mb_s"]:.0f} | |
| CPU of our upload, of this process alone, s | {figures["upload_cpu_seconds"]:.2f} | |
| of boto3's, s | {figures["plain_cpu_seconds"]:.2f} | |

{table(m)}

Steps alone: {listed(m.alone)} s. Uploads of one save's files with nothing beside them: ours {listed(m.ours)} s, boto3's
own {listed(m.plain)} s, in turns. "Waited" is the time that a save had to wait for the one before it, "copied" that of
the copy aside; "held up" is from the end of a step to where the next may start, by the clock, whatever was done in it.

Missed: {", ".join(figures["unmet"]) or "nothing"}.
"""


def main() -> int:
    """Measure, print the table, write the page, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it works")
    parser.add_argument("--page", type=Path, help="write a dated page here")
    options = parser.parse_args()
    code = commit()
    measured = measure(TINY if options.tiny else FULL)
    figures = summarize(measured, tiny=options.tiny)
    print(table(measured))
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(page(code, measured, figures))
    print(json.dumps(figures))
    return 1 if figures["unmet"] else 0


if __name__ == "__main__":
    sys.exit(main())
