"""Writes a byte-level Hugging Face tokenizer into a GGUF: tokens and their types, merges, special tokens, template.

llama.cpp has the rules that split text before merging built in, and selects them by name. A tokenizer whose rule it
does not know is refused, because the model would be served with other tokens than it was trained with. After the file
is written, `run` checks on texts that both tokenizers agree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from deepcoder_trainer.errors import BadConfig

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_RULES = {
    _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: "qwen2",
    _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: "llama-bpe",
}
"""Splitting rule to llama.cpp's name for it."""


def add_vocabulary(writer: gguf.GGUFWriter, directory: Path, size: int) -> None:
    """Write the tokenizer of `directory`, padded to the model's `size` rows. Raises `BadConfig`."""
    try:
        tokenizer = json.loads((directory / "tokenizer.json").read_bytes())
    except FileNotFoundError:
        raise BadConfig(f"{directory} has no tokenizer.json, which a GGUF is made from", field="--source") from None
    names, types = _tokens(tokenizer, size)
    special = gguf.SpecialVocab(directory, load_merges=True, n_vocab=size)
    if not special.merges:
        raise BadConfig(
            "the tokenizer has no merges (as the demo's, whose pieces are added tokens): llama.cpp cannot load it; "
            "export in another format than GGUF",
            field="--format",
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_rule(tokenizer))
    writer.add_token_list(names)
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return a name and a type for each row of the embedding; rows without a token are marked unused."""
    names = [f"[PAD{i}]" for i in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    for name, number in tokenizer["model"]["vocab"].items():
        _check(name, number, size)
        names[number], types[number] = name, int(gguf.TokenType.NORMAL)
    for added in tokenizer.get("added_tokens", []):
        name, number = added["content"], added["id"]
        _check(name, number, size)
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        names[number], types[number] = name, int(kind)
    return names, types


def _check(name: str, number: int, size: int) -> None:
    if number >= size:
        raise BadConfig(
            f"the tokenizer's token {name!r} has number {number}, but the model's embedding has {size} rows",
            field="--source",
        )


def _rule(tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name for the rule that splits text before merging."""
    model, splitter = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    others = {step.get("type") for step in steps} - {"Split", "ByteLevel"}
    if model.get("type") != "BPE" or others or (patterns and (len(patterns) > 1 or patterns[0] not in _RULES)):
        raise BadConfig(
            f"the tokenizer ({model.get('type')}, split by {patterns or sorted(map(str, others))}) is none that "
            "llama.cpp knows by name here (byte-level BPE split as Qwen2's, Llama 3's or GPT-2's): export in another "
            "format than GGUF",
            field="--format",
        )
    return _RULES[patterns[0]] if patterns else "gpt-2"
