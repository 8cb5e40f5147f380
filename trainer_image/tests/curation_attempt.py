"""The curation of one attempt in a process of its own, which tests kill: everything of an attempt but its training.

`python curation_attempt.py CONFIG FOLDER`: the stage config, and a folder that is this attempt's alone.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.curation.progress import Figures
from deepcoder_trainer.curation.stage import CuratedSet, RunCuration, curated_set
from deepcoder_trainer.judge.connect import connect_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.tokenizer import load_tokenizer


async def attempt(config: StageConfig, folder: Path, local: LocalJudge) -> CuratedSet:
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(connect_judge(config, local))
        beside = asyncio.create_task(judge.run())
        sources = Sources(cache=folder / "cache", endpoint=config.storage.endpoint)
        model = sources.model(config.model)
        asked = RunCuration(
            config=config,
            store=open_run_storage(config.storage),
            sources=sources,
            workdir=folder,
            model_dir=model,
            tokenizer=load_tokenizer(model),
            judge=judge,
            display=Figures(lambda phase, done, total: print(phase, done, total, file=sys.stderr)),
        )
        try:
            return await curated_set(asked)
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)


if __name__ == "__main__":
    judge = LocalJudge(2)
    try:
        made = asyncio.run(attempt(StageConfig.from_json(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), judge))
    finally:
        judge.close()
    print(made.path, made.sha256)
