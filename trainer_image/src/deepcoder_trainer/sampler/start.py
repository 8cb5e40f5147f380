"""Starts the attempt's samplers: one actor per engine, which gets the model's config and tokenizer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepcoder_contracts.recipe import Order
from deepcoder_contracts.stage import StageConfig, StageType
from deepcoder_trainer.modelconfig import read_model_config
from deepcoder_trainer.sampler.group import REPLACEMENTS, ActorEngine, SamplerGroup
from deepcoder_trainer.sampler.settings import engine_settings
from deepcoder_trainer.seeds import seed

STALL_SHARE = 0.8
"""Share of a Train stage's stallSeconds after which a silent sampler is replaced, before the stage stalls."""

_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def model_files(directory: Path) -> dict[str, bytes]:
    """Return the contents of config and tokenizer files of a folder in Hugging Face layout, without weights."""
    skipped = {path for pattern in _WEIGHTS for path in directory.glob(pattern)}
    return {
        path.name: path.read_bytes()
        for pattern in _FILES
        for path in sorted(directory.glob(pattern))
        if path not in skipped
    }


def engine_seed(config: StageConfig, number: int) -> int:
    """Return the seed of an engine's own generator, which serves requests without a seed.

    Each engine of each attempt has a different seed. With the same one, two engines that run samples of the same group
    at the same engine step would produce the same text.
    """
    return seed(config.recipe.seed, "engine", config.stage.name, config.ordinal, number) % 2**31


async def start_samplers(config: StageConfig, model_dir: Path, places: Sequence[Any] = ()) -> SamplerGroup:
    """Start `stage.resources.samplers` engines. `places` are the placements that each shares with a learner rank."""
    from deepcoder_trainer.sampler.actor import create_actor

    settings = engine_settings(config, read_model_config(model_dir))
    files = model_files(model_dir)
    numbers = itertools.count()
    # Without steps, heartbeats show that the stage is alive. A long response may then take all of its own time.
    steps = config.stage.type is StageType.TRAIN
    longest_silence = STALL_SHARE * config.stage.stall_seconds if steps else math.inf

    def make() -> ActorEngine:
        number = next(numbers)
        place = places[number] if places else None
        return ActorEngine(create_actor(files, replace(settings, seed=engine_seed(config, number)), place))

    group = SamplerGroup(
        make=make,
        size=config.stage.resources.samplers,
        clear_cache=config.recipe.order is Order.STRICT,
        replacements=0 if places else REPLACEMENTS,
        longest_silence=longest_silence,
    )
    try:
        await group.start()
    except BaseException:
        await group.close()
        raise
    return group
