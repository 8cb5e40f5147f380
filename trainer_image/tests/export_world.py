"""Models with whole tokenizers, committed as a run leaves them: what tests of exports start from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, ParentRef, RunIdentity
from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.evaluation.results import EvaluationResults
from deepcoder_trainer.export import prompts

RUN = RunIdentity(namespace="team", name="coder", uid="11111111-2222-3333-4444-555555555555")
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(directory: Path, architecture: str = "Qwen2", size: int = 420) -> int:
    """A byte-level tokenizer with merges and a chat template; returns its number of tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    rule = _LLAMA3 if architecture == "Llama" else PRETOKENIZE_REGEX
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rule), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 3, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*prompts.texts(seed=1, count=50), *prompts.AWKWARD], trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, additional_special_tokens=[START]
    )
    whole.add_tokens(["<think>"])
    whole.chat_template = CHAT_TEMPLATE
    whole.save_pretrained(directory)
    return len(whole)


def make_model(directory: Path, architecture: str = "Qwen2", **overrides: Any) -> Path:
    """A model of random weights, wide enough for llama.cpp's blocks of 256, in bfloat16."""
    import torch
    import transformers

    tokens = make_tokenizer(directory, architecture)
    vocabulary = json.loads((directory / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    settings: dict[str, Any] = {
        "vocab_size": tokens + 12,  # padded, as Qwen's are
        "hidden_size": 256,
        "head_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 128,
        "tie_word_embeddings": architecture != "Qwen3",
        "bos_token_id": None,
        "eos_token_id": special[END],
        "pad_token_id": special[PAD],
        "architectures": [f"{architecture}ForCausalLM"],
        **overrides,
    }
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(
        getattr(transformers, f"{architecture}Config")(**settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # zero otherwise, which hides a bias that is lost or in another order
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.mul_(3)
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


def commit(model: Path, root: Path, **overrides: Any) -> Path:
    """The model as an export of a run below `root`: a manifest, and one of the checkpoint that it was made from."""
    checkpoint = root / "long" / "step-000002.a001"
    export = root / "long" / "export" / "step-000002.a001"
    export.parent.mkdir(parents=True)
    checkpoint.mkdir(parents=True)
    (root / "RUN.json").write_text("{}")
    ref = _write(checkpoint, manifest(kind=ManifestKind.CHECKPOINT, total_steps=2))
    model.rename(export)
    files = [
        FileEntry(path=f.name, size=f.stat().st_size, sha256=file_sha256(f))
        for f in sorted(export.iterdir())
        if f.is_file()
    ]
    _write(export, manifest(kind=ManifestKind.EXPORT, parent=ref, files=files, **overrides))
    return export


def evaluate(
    export: Path, figures: dict[str, float], key: str = "a" * 64, *, context_tokens: int = 32768, samples: int = 1
) -> Path:
    """An evaluation of a committed export, in its run's folder; returns its own."""
    digest = sha256_digest((export / MANIFEST).read_bytes())
    folder = export.parents[2] / "eval" / key
    folder.mkdir(parents=True)
    inputs = {"targets": [], "context_tokens": context_tokens, "samples_per_problem": samples}
    results = folder / "results.json"
    results.write_bytes(EvaluationResults(key=key, inputs=inputs, targets={}).to_json())
    entry = FileEntry(path=results.name, size=results.stat().st_size, sha256=file_sha256(results))
    of = ParentRef(uri=f"file://{export}", digest=digest)
    kind = ManifestKind.EVALUATION
    _write(folder, manifest(kind=kind, parent=of, metrics=figures, evaluation_key=key, files=[entry]))
    return folder


def manifest(**overrides: Any) -> Manifest:
    """A manifest of the run."""
    settings: dict[str, Any] = {
        "run": RUN,
        "stage": "long",
        "stage_index": 1,
        "ordinal": 1,
        "step": 2,
        "total_steps": 5,
        "model": "hf://org/base@main",
        "config_digest": "sha256:" + "c" * 64,
        "dataset_digest": "sha256:" + "d" * 64,
        "code_digest": "sha256:" + "e" * 64,
        "seed": 7,
        "world_size": 1,
        "metrics": {"reward_mean": 0.625, "eval/held/pass_at_1": 0.5},
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        **overrides,
    }
    return Manifest(**settings)


def _write(folder: Path, document: Manifest) -> ParentRef:
    data = document.to_json()
    (folder / MANIFEST).write_bytes(data)
    return ParentRef(uri=f"file://{folder}", digest=sha256_digest(data))


def large(root: Path, layers: int) -> Path:
    """A committed export of about 8 MB a layer in files of two layers, made without the model in memory."""
    import torch
    from safetensors.torch import save_file

    model = make_model(root / "model", num_hidden_layers=1, hidden_size=512, head_dim=128, intermediate_size=2048)
    first = load(model / "model.safetensors")
    shape = {n: v for n, v in first.items() if n.startswith("model.layers.0.")}
    rest = {n: v for n, v in first.items() if n not in shape}
    generator = torch.Generator().manual_seed(0)
    (model / "model.safetensors").unlink()
    save_file(rest, model / "model-rest.safetensors")
    for pair in range(0, layers, 2):
        made = {
            name.replace("layers.0.", f"layers.{number}."): torch.randn(value.shape, generator=generator)
            .mul_(0.02)
            .to(value.dtype)
            for number in (pair, pair + 1)
            for name, value in shape.items()
        }
        save_file(made, model / f"model-{pair:05d}.safetensors")
    config = json.loads((model / "config.json").read_text())
    config |= {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    (model / "config.json").write_text(json.dumps(config))
    return commit(model, root / "run")


def load(path: Path) -> dict[str, Any]:
    """All tensors of a file."""
    from safetensors.torch import load_file

    return dict(load_file(path))


UNLIKELY = 7
"""A token that `scale_head` makes so everywhere."""


def scale_head(policy: Any) -> None:
    """Logits of thousands, of which the eight bits of a bfloat16 leave little of the small differences."""
    import torch

    [head] = [parameter for name, parameter in policy.named_parameters() if name == "lm_head.weight"]
    with torch.no_grad():
        head.mul_(1500.7)
        head[UNLIKELY] *= 0.03


def negate(folder: Path, name: str, rows: slice) -> None:
    """Make the model in a folder another one."""
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    weights = load(path)
    weights[name][rows] *= -1
    save_file(weights, path, metadata={"format": "pt"})
