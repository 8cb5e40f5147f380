"""Loads the model's tokenizer, for training, curation and evaluation alike. Raises `BadConfig` if there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.heavy_imports import heavy_imports


def load_tokenizer(model_dir: Path) -> Any:
    """Load the model's tokenizer. Raises BadConfig if there is none.

    If there is a tokenizer.json, it is loaded directly: the class that AutoTokenizer finds does the same, but imports
    torch, which takes five seconds of CPU time.
    """
    try:
        if (model_dir / "tokenizer.json").is_file():
            with heavy_imports():
                from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
        with heavy_imports():
            from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
        if not tokenizer.encode("0"):  # without files, AutoTokenizer may make an empty tokenizer
            raise ValueError("it knows no text")
        return tokenizer
    except (OSError, ValueError) as error:
        raise BadConfig(
            f"model.uri {model_dir} has no usable tokenizer: {error}: put the tokenizer.json beside config.json",
            field="model.uri",
        ) from error
