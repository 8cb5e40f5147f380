"""Starting the attempt's samplers: one actor an engine, the model's config and tokenizer sent along."""

from __future__ import annotations

from pathlib import Path

from deepcoder_contracts.recipe import Order
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.modelconfig import read_model_config
from deepcoder_trainer.sampler.group import ActorEngine, SamplerGroup
from deepcoder_trainer.sampler.settings import engine_settings

_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def model_files(directory: Path) -> dict[str, bytes]:
    """Config and tokenizer of a folder in Hugging Face layout; weights stay where they are."""
    skipped = {path for pattern in _WEIGHTS for path in directory.glob(pattern)}
    return {
        path.name: path.read_bytes()
        for pattern in _FILES
        for path in sorted(directory.glob(pattern))
        if path not in skipped
    }


async def start_samplers(config: StageConfig, model_dir: Path) -> SamplerGroup:
    """Start `stage.resources.samplers` engines; raises BadConfig for a model that is not supported."""
    from deepcoder_trainer.sampler.actor import create_actor

    settings = engine_settings(config, read_model_config(model_dir))
    files = model_files(model_dir)
    group = SamplerGroup(
        make=lambda: ActorEngine(create_actor(files, settings)),
        size=config.stage.resources.samplers,
        clear_cache=config.recipe.order is Order.STRICT,
    )
    try:
        await group.start()
    except BaseException:
        await group.close()
        raise
    return group
