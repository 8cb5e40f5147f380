"""Fixtures that make tiny models, and learners that train them; conftest.py imports them for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process_learner import InProcessLearner

from deepcoder_contracts.recipe import Recipe
from deepcoder_trainer.heavy_imports import heavy_imports

VOCABULARY = 96


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes (once for each argument set) a tiny model in Hugging Face layout and returns its directory."""
    made: dict[str, Path] = {}

    def make(architecture: str = "Qwen2", **overrides: Any) -> Path:
        with heavy_imports():
            import torch
            import transformers

        key = f"{architecture}-{sorted(overrides.items())}"
        if key not in made:
            settings: dict[str, Any] = {
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 48,
                "tie_word_embeddings": True,
                "max_position_embeddings": 256,
                "architectures": [f"{architecture}ForCausalLM"],
                **overrides,
            }
            config = getattr(transformers, f"{architecture}Config")(**settings)
            torch.manual_seed(0)
            model = getattr(transformers, f"{architecture}ForCausalLM")(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(4)  # the default initialization is nearly uniform, which hides mistakes
            directory = tmp_path_factory.mktemp("model")
            model.save_pretrained(directory)
            made[key] = directory
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_coder_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny model with a byte-level tokenizer, in shapes that vLLM's CPU kernels know (heads of 32)."""

    def make(architecture: str = "Qwen2", *, tied: bool = True) -> Path:
        with heavy_imports():
            import torch
            import transformers
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        directory = tmp_path_factory.mktemp("coder")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            [], trainers.BpeTrainer(vocab_size=258, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
        )
        whole = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
        whole.save_pretrained(directory)
        torch.manual_seed(0)
        config = getattr(transformers, f"{architecture}Config")(
            vocab_size=258,
            hidden_size=128,
            head_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=192,
            max_position_embeddings=128,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
            architectures=[f"{architecture}ForCausalLM"],
        )
        network = getattr(transformers, f"{architecture}ForCausalLM")(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(2)
        network.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def coder_model(make_coder_model: Callable[..., Path]) -> Path:
    """A tiny tied Qwen2 that vLLM samples from."""
    return make_coder_model()


@pytest.fixture
def make_learner(
    tiny_model: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> Iterator[Callable[..., InProcessLearner]]:
    """A single-rank learner in this process."""
    made: list[InProcessLearner] = []

    def make(recipe: Recipe | None = None, model: Path | None = None, capacity: int = 64) -> InProcessLearner:
        with heavy_imports():
            from deepcoder_trainer.learner.rank import LearnerRank
        from deepcoder_trainer.learner.rank_settings import RankSettings

        settings = RankSettings(
            model_dir=str(model or tiny_model()),
            recipe=recipe or make_recipe(),
            run_seed=0,
            accelerators=False,
            threads=1,
            collective_timeout_s=60,
        )
        made.append(InProcessLearner(LearnerRank(settings, 0, 1), capacity))
        return made[-1]

    yield make
    for learner in made:
        learner.rank.close()
