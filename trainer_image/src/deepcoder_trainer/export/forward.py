"""Computes a model's logits without holding the model in memory: each layer is read, applied to all prompts, and freed.

Of the embedding only the rows of the prompts' tokens are read, and the head is read in tiles, so the largest object in
memory is one decoder layer in float32 (1.1 GB for a 14B model). Everything is computed in float32, so a difference
between two models comes from their weights alone. The layers are those of transformers, with the config's positions.
Weights from remote storage are prefetched, a few tensors at a time, while the ones before them are used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from deepcoder_trainer.export.tensors import Tensors

HEAD_ROWS = 2048
"""Rows of the head per multiplication: 42 MB in float32 for a 14B model; readers hold several such tiles."""

_HEAD, _EMBEDDING, _NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"


class Layerwise:
    """A model whose weights are read when they are needed."""

    def __init__(
        self,
        directory: Path,
        tensors: Tensors,
        linear: Callable[[nn.Linear, Tensor], Tensor] | None = None,
        readers: int = 0,
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        """`directory` holds config.json; `linear` replaces the linear maps of the decoder layers.

        `readers` threads prefetch one tensor each. `told` is called with the number of computed layers and their total.
        """
        self._tensors = tensors
        self._linear = linear
        self._readers = readers
        self._told = told
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        # The weights are already dequantized, so transformers must not build a quantized model here.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        self._config = config
        with torch.device("meta"):
            self._model: Any = AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        self._model.eval()
        # Rotary frequencies are computed, not stored, and those made on the meta device have no values.
        self._rotary = type(self._model.rotary_emb)(config=config)
        self._head = _HEAD if _HEAD in tensors.names() else _EMBEDDING

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights that config.json requires; a server ignores all others."""
        asked = {f"model.{name}": tuple(weight.shape) for name, weight in self._model.named_parameters()}
        if not self._config.tie_word_embeddings:
            asked[_HEAD] = asked[_EMBEDDING]
        return asked

    @torch.no_grad()
    def hidden(self, prompts: list[list[int]]) -> list[Tensor]:
        """Return the final hidden states of each prompt: [tokens, width]."""
        rows = self._embedding({token for prompt in prompts for token in prompt})
        states = [torch.stack([rows[token] for token in prompt])[None] for prompt in prompts]
        layers = [(layer, f"model.layers.{number}.") for number, layer in enumerate(self._model.layers)]
        names = [prefix + name for layer, prefix in layers for name, _ in layer.named_parameters()]
        weights = ahead((partial(self._tensors.get, name) for name in names), self._readers)
        for done, (layer, _) in enumerate(layers, start=1):
            self._fill(layer, weights)
            for i, state in enumerate(states):
                positions = torch.arange(state.shape[1])[None]
                states[i] = layer(
                    state,
                    attention_mask=None,  # with SDPA: causal
                    position_ids=positions,
                    position_embeddings=self._rotary(state, positions),
                )
            layer.to("meta")
            if self._told is not None:
                self._told(done, len(layers))
        self._model.norm.to_empty(device="cpu")
        self._model.norm.weight.copy_(self._tensors.get(_NORM))
        return [self._model.norm(state)[0] for state in states]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states: [tokens, vocabulary]."""
        rows = self._tensors.shape(self._head)[0]
        spans = [(start, min(start + HEAD_ROWS, rows)) for start in range(0, rows, HEAD_ROWS)]
        tiles = ahead((partial(self._tensors.rows, self._head, *span) for span in spans), self._readers)
        made = torch.empty(hidden.shape[0], rows)
        for (start, stop), tile in zip(spans, tiles, strict=True):
            made[:, start:stop] = hidden @ tile.to(torch.float32).T
        return made

    def _embedding(self, tokens: set[int]) -> dict[int, Tensor]:
        asked = sorted(tokens)
        rows = ahead((partial(self._tensors.rows, _EMBEDDING, token, token + 1) for token in asked), self._readers)
        return {token: row[0].to(torch.float32) for token, row in zip(asked, rows, strict=True)}

    def _fill(self, layer: nn.Module, weights: Iterator[Tensor]) -> None:
        """Fill a layer with the next of `weights`, which are its own."""
        layer.to_empty(device="cpu")
        for parameter in layer.parameters():
            parameter.copy_(next(weights))
        if self._linear is not None:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.forward = partial(self._linear, module)  # type: ignore[method-assign]


def ahead(calls: Iterable[Callable[[], Tensor]], threads: int) -> Iterator[Tensor]:
    """Yield the results of the calls in order; with `threads`, that many calls run ahead."""
    if not threads:
        yield from (call() for call in calls)
        return
    waiting: deque[Future[Tensor]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
