"""The policy: a Hugging Face model of a known architecture, with a head that never materializes all logits.

Unsupported models (mixture of experts, LoRA adapters, sliding windows) are refused with a specific error before
anything is loaded. Parameters keep their Hugging Face names, so that checkpoints, exports and samplers agree. A tied
head is the embedding itself and has no name of its own. Master weights are float32. With more than one rank, or in
bfloat16, FSDP2 shards them over all ranks and casts the parameters that it gathers. Sequence parallelism does not
change this.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModel

from deepcoder_contracts.recipe import Precision
from deepcoder_contracts.rope import RopeScaling
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.grpo.attention import NAME, Segments
from deepcoder_trainer.grpo.logprob import linear_logprob
from deepcoder_trainer.learner.activations import prepare
from deepcoder_trainer.learner.mesh import Meshes
from deepcoder_trainer.modelconfig import read_model_config, rope_entries, weight_files

COMPUTE_DTYPES: dict[Precision, torch.dtype] = {each: getattr(torch, each.dtype) for each in Precision}
"""Compute dtype of the forward and backward pass."""


class PolicyModel(nn.Module):
    """Backbone and head. The forward pass returns log-probabilities of given tokens, not logits."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.sequence_group: ProcessGroup | None = None
        """The ranks that share each row of tokens; None if this rank holds whole rows."""
        # float32, not the dtype of config.json: bfloat16 cannot represent an update at a learning rate of 1e-6.
        self.model = AutoModel.from_config(config, attn_implementation=NAME, dtype=torch.float32)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Segments,
        response_index: Tensor,
        targets: Tensor,
        temperature: float,
        *,
        entropy: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities [R] of `targets` and, with `entropy`, entropies [R].

        input_ids, position_ids: [n] of a packed row; response_index: [R] positions that predict; targets: [R].
        The head is applied within the root module's forward pass, because FSDP has its weight gathered only there.
        """
        hidden = self.model(
            input_ids=input_ids.unsqueeze(0),
            position_ids=position_ids.unsqueeze(0),
            use_cache=False,
            segments=segments,
            sequence_group=self.sequence_group,
        ).last_hidden_state[0]
        head = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return linear_logprob(hidden.index_select(0, response_index), head, targets, temperature, entropy=entropy)


def read_config(directory: Path, rope: RopeScaling | None = None) -> Any:
    """Return the model's config, with positions scaled by `rope`. Raises `BadConfig` for an unsupported model."""
    entries = rope_entries(read_model_config(directory), rope)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise BadConfig(
            "the model attends within a sliding window, which packed attention does not: set use_sliding_window to "
            "false in its config.json, or use another model",
            field="model.uri",
        )
    for name, value in entries.items():
        setattr(config, name, value)
    config.attention_dropout = 0.0  # dropout would add noise to the probability ratio
    return config


def load_policy(
    directory: Path,
    device: torch.device,
    precision: Precision,
    *,
    meshes: Meshes | None = None,
    recompute: bool = False,
    offload: bool = False,
    rope: RopeScaling | None = None,
) -> PolicyModel:
    """Load the model onto `device` in float32, sharded over the ranks of `meshes`.

    With `recompute`, a layer keeps only its input and its attention's output for the backward pass. `offload` implies
    `recompute` and keeps these in host memory. No weight is held twice: parameters are created on the meta device and
    sharded, then each rank copies its own part from the memory-mapped files.
    """
    config = read_config(directory, rope)
    with torch.device("meta"):
        policy = PolicyModel(config)
    if recompute or offload:
        prepare(policy, keep_attention=True, offload=offload)
    if meshes is not None:
        policy.sequence_group = meshes.sp_group
        if meshes.fsdp is not None:
            shard(policy, meshes.fsdp, precision)
    policy.to_empty(device=device)
    # Rotary frequencies are not in checkpoints, and those computed on the meta device have no values.
    policy.model.rotary_emb = type(policy.model.rotary_emb)(config=config).to(device)
    load_weights(policy, directory)
    policy.train()
    return policy


def shard(policy: PolicyModel, mesh: DeviceMesh, precision: Precision) -> None:
    """Apply FSDP2 over `mesh`: one unit per decoder layer, one for the rest. Gradients are reduced in float32."""
    policy_dtype = MixedPrecisionPolicy(param_dtype=COMPUTE_DTYPES[precision], reduce_dtype=torch.float32)
    for layer in policy.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy_dtype)
    fully_shard(policy, mesh=mesh, mp_policy=policy_dtype)


def load_weights(policy: PolicyModel, directory: Path) -> None:
    """Copy weights from safetensors files into the parameters, casting their dtype.

    Raises `BadConfig` for missing or unknown weights, or a wrong shape.
    """
    wanted = dict(policy.named_parameters())
    by_file: dict[Path, list[str]] = defaultdict(list)
    stored = weight_files(directory)
    if missing := sorted(set(wanted) - set(stored)):
        raise BadConfig(
            f"{directory} lacks weights: {', '.join(missing[:3])} ({len(missing)} in all)", field="model.uri"
        )
    ignorable = {"lm_head.weight"} if policy.lm_head is None else set()
    extra = sorted(n for n in set(stored) - set(wanted) - ignorable if not n.endswith("rotary_emb.inv_freq"))
    if extra:
        raise BadConfig(
            f"{directory} has unknown weights: {', '.join(extra[:3])} ({len(extra)} in all)", field="model.uri"
        )
    for name in wanted:
        by_file[stored[name]].append(name)
    with torch.no_grad():
        for path, names in by_file.items():
            with safe_open(path, framework="pt") as f:
                for name in names:
                    _copy(wanted[name], f.get_tensor(name), name)


def _copy(parameter: Tensor, value: Tensor, name: str) -> None:
    if parameter.shape != value.shape:
        raise BadConfig(
            f"weight {name} has shape {tuple(value.shape)}, config.json says {tuple(parameter.shape)}",
            field="model.uri",
        )
    if isinstance(parameter, DTensor):
        # Every rank has the whole value memory-mapped and takes its own part, without communication.
        part = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(value)
