"""Activation checkpointing: a decoder layer keeps only its input and, on request, its attention's output.

Everything else is recomputed in the backward pass. Attention is the only part whose cost grows with the square of the
length. With `keep_attention` its outputs are kept, at the same memory as the layers' inputs, and only the matrix
products around it run twice. With `offload` both are moved to host memory: the copy starts, on its own stream, as soon
as a layer has run, and the copy back overlaps with the backward pass of the following layer. The gradients are
identical to the bit in all cases.

A backward pass must follow its forward pass before the next forward pass starts, which drops the leftovers of a failed
pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import varlen  # noqa: F401  registers its operator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint, noop_context_fn

from deepcoder_trainer.learner.host_bytes import HostBytes

ATTENTION = frozenset(
    {
        torch.ops.torch_attn._varlen_attn.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Operators whose outputs are kept. Any other attention operator is recomputed."""

SMALL = 1 << 20
"""Size in bytes below which a tensor is not offloaded."""


def prepare(policy: nn.Module, *, keep_attention: bool, offload: bool, small: int = SMALL) -> None:
    """Enable activation checkpointing in each decoder layer of `policy.model`. Call it before sharding and running."""
    host = HostMemory(small) if offload else None
    if host is not None:
        policy.register_forward_pre_hook(lambda *_: host.clear())

    def run(function: Callable[..., Any], *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args)
        if host is None:
            return checkpoint(function, *args, use_reentrant=False, context_fn=_contexts(keep_attention, None))
        host.begin_layer()
        with saved_tensors_hooks(host.park, host.fetch):  # for the layer's input; inside, the checkpoint has its own
            return checkpoint(function, *args, use_reentrant=False, context_fn=_contexts(keep_attention, host))

    for layer in policy.model.layers:  # type: ignore[union-attr]
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = run


def _contexts(keep_attention: bool, host: HostMemory | None) -> Callable[[], Any]:
    if not keep_attention:
        return noop_context_fn
    kept: deque[Any] = deque()
    return lambda: (_Keeping(kept, host), _Reusing(kept, host))


class _Keeping(TorchDispatchMode):
    """Active in the forward pass: keeps the outputs of attention."""

    def __init__(self, kept: deque[Any], host: HostMemory | None) -> None:
        super().__init__()
        self._kept, self._host = kept, host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in ATTENTION:
            self._kept.append(tree_map_only(Tensor, self._keep, out))
        return out

    def _keep(self, tensor: Tensor) -> Any:
        # Detached: `tensor` is about to become part of the graph, so keeping it would make a reference cycle.
        tensor = tensor.detach()
        return tensor if self._host is None else self._host.park(tensor)


class _Reusing(TorchDispatchMode):
    """Active in the recomputation: returns the kept outputs instead of running attention."""

    def __init__(self, kept: deque[Any], host: HostMemory | None) -> None:
        super().__init__()
        self._kept, self._host = kept, host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in ATTENTION:
            return func(*args, **(kwargs or {}))
        out = self._kept.popleft()
        return out if self._host is None else tree_map_only(Parked, self._host.fetch, out)


@dataclass(eq=False)
class Parked:
    """A tensor in host memory."""

    host: HostBytes
    like: Tensor
    """A meta tensor with its shape, strides and dtype."""
    device: torch.device
    layer: int
    loaded: Tensor | None = None
    """The tensor on its device again, once its copy back was started."""
    ready: Any = None
    """CUDA event after which `loaded` holds the values."""


@dataclass
class _Layer:
    """The parked tensors of one layer."""

    parked: list[Parked] = field(default_factory=list)
    copied: Any = None
    """CUDA event after which the newest of them is in host memory."""


class HostMemory:
    """Offloaded tensors, by layer. Copies run on one side stream, in parallel to the computation."""

    def __init__(self, small: int = SMALL) -> None:
        self._small = small
        self._layers: list[_Layer] = []
        self._stream: Any = None

    def clear(self) -> None:
        """Start a forward pass: forget all parked tensors."""
        self._layers = []

    def begin_layer(self) -> None:
        """Start the next layer, to which tensors that are parked from now on belong."""
        if len(self._layers) >= 2 and self._layers[-2].copied is not None:
            # At most two layers are copied at a time; otherwise their memory would not be free in time.
            torch.cuda.current_stream().wait_event(self._layers[-2].copied)
        self._layers.append(_Layer())

    def park(self, tensor: Tensor) -> Tensor | Parked:
        """Start a copy to host memory and return its handle. A small tensor is returned unchanged."""
        if tensor.nbytes < self._small:
            return tensor
        layer, tensor = self._layers[-1], tensor.detach()
        like = torch.empty_like(tensor, device="meta")
        if like.stride() != tensor.stride():  # its elements have gaps or overlap in memory
            tensor = torch.empty_like(tensor).copy_(tensor)  # in the memory order of `like`, not always row-major
        host = HostBytes(tensor.nbytes, pinned=tensor.is_cuda)
        if tensor.is_cuda:
            stream = self._side_stream(tensor)
            with torch.cuda.stream(stream):
                host.fill(_bytes(tensor))
                layer.copied = stream.record_event()
            tensor.record_stream(stream)
        else:
            host.fill(_bytes(tensor))
        layer.parked.append(Parked(host, like, tensor.device, len(self._layers) - 1))
        return layer.parked[-1]

    def fetch(self, parked: Tensor | Parked) -> Tensor:
        """Return the tensor on its device, and start to copy back the layer that the backward pass needs next."""
        if isinstance(parked, Tensor):
            return parked
        for layer in self._layers[max(0, parked.layer - 1) : parked.layer + 1][::-1]:
            for other in layer.parked:
                self._load(other)
        self._layers[parked.layer].parked.remove(parked)
        assert parked.loaded is not None
        if parked.ready is not None:
            torch.cuda.current_stream().wait_event(parked.ready)
        return parked.loaded

    def _load(self, parked: Parked) -> None:
        if parked.loaded is not None:
            return
        parked.loaded = torch.empty_like(parked.like, device=parked.device)
        if parked.device.type != "cuda":
            parked.host.restore(_bytes(parked.loaded))
            return
        stream = self._side_stream(parked.loaded)
        with torch.cuda.stream(stream):
            parked.host.restore(_bytes(parked.loaded))
            parked.ready = stream.record_event()

    def _side_stream(self, tensor: Tensor) -> Any:
        """Return the stream for copies, which waits for all work queued on the current stream so far."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        return self._stream


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes, [n] uint8, of a tensor whose elements fill their memory without gaps, in any order."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
