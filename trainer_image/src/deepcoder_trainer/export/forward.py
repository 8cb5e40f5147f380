"""A model's logits without the model in memory: a layer is read, applied to all prompts, and let go.

The embedding's rows are read for the tokens at hand and the head in tiles, so that the largest thing held is one
decoder layer in float32 (1.1 GB of a 14B model). Everything is computed in float32: a difference between two models
comes from their weights alone. The layers are transformers' own, with the config's own positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from deepcoder_trainer.export.tensors import Tensors

HEAD_ROWS = 16384
"""Rows of the head that are multiplied at once."""

_HEAD, _EMBEDDING, _NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"


class Layerwise:
    """A model over weights that are read when they are needed."""

    def __init__(
        self, directory: Path, tensors: Tensors, linear: Callable[[nn.Linear, Tensor], Tensor] | None = None
    ) -> None:
        """`directory` holds config.json; `linear` takes the place of the decoder layers' linear maps."""
        self._tensors = tensors
        self._linear = linear
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        # The weights come multiplied out: the model that is made here is not to be a compressed one.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            self._model: Any = AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        self._model.eval()
        # Frequencies are computed, not stored; those made on the meta device are lost.
        self._rotary = type(self._model.rotary_emb)(config=config)
        self._head = _HEAD if _HEAD in tensors.names() else _EMBEDDING

    @torch.no_grad()
    def hidden(self, prompts: list[list[int]]) -> list[Tensor]:
        """What the head is applied to: [tokens, width] of each prompt."""
        states = [torch.stack([self._embedding(token) for token in prompt])[None] for prompt in prompts]
        for number, layer in enumerate(self._model.layers):
            self._fill(layer, f"model.layers.{number}.")
            for i, state in enumerate(states):
                positions = torch.arange(state.shape[1])[None]
                states[i] = layer(
                    state,
                    attention_mask=None,  # with SDPA: causal
                    position_ids=positions,
                    position_embeddings=self._rotary(state, positions),
                )
            layer.to("meta")
        self._model.norm.to_empty(device="cpu")
        self._model.norm.weight.copy_(self._tensors.get(_NORM))
        return [self._model.norm(state)[0] for state in states]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, vocabulary]."""
        rows = self._tensors.shape(self._head)[0]
        tiles = []
        for start in range(0, rows, HEAD_ROWS):
            tile = self._tensors.rows(self._head, start, min(start + HEAD_ROWS, rows))
            tiles.append(hidden @ tile.to(torch.float32).T)
        return torch.cat(tiles, dim=1)

    def _embedding(self, token: int) -> Tensor:
        return self._tensors.rows(_EMBEDDING, token, token + 1)[0].to(torch.float32)

    def _fill(self, layer: nn.Module, prefix: str) -> None:
        layer.to_empty(device="cpu")
        for name, parameter in layer.named_parameters():
            parameter.copy_(self._tensors.get(prefix + name))
        if self._linear is not None:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.forward = partial(self._linear, module)  # type: ignore[method-assign]
