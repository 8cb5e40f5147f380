"""Measures a training step on a rank: seconds by phase, peak memory, and the share of the device's peak speed.

None of it affects the result: two runs with identical bits differ in all of these figures.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict

import numpy as np
import torch

from deepcoder_contracts.model_shape import ModelShape
from deepcoder_trainer.grpo.flops import sequence_flops
from deepcoder_trainer.grpo.pack import MicroBatch

PEAK_FLOPS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12,
    "H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12,
}  # fmt: skip
"""Peak dense bfloat16 FLOP/s by a part of the device's name, the first that matches (NVIDIA's data sheets). For other
devices, no MFU is reported."""


class Meter:
    """Measures one training step after another."""

    def __init__(self, device: torch.device, shape: ModelShape, sequence_parallel: int) -> None:
        self._device = device
        self._shape = shape
        self._share = 1 / sequence_parallel
        self._peak = peak_flops(device)
        self.begin()

    def begin(self) -> None:
        """Start a step: reset all figures."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._flops = 0.0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._last = self._now()

    def lap(self, phase: str) -> None:
        """Attribute the time since the last call to `phase`: recompute, forward_backward or optimizer."""
        now = self._now()
        self._seconds[phase] += now - self._last
        self._last = now

    def count(self, micro_batch: MicroBatch) -> None:
        """Add this rank's FLOPs of a micro-batch's forward and backward pass. Sequence-parallel ranks share a row."""
        rows = sum(sequence_flops(self._shape, int(n), 0) for n in np.diff(micro_batch.cu_seqlens))
        head = 6.0 * self._shape.head_matrix * len(micro_batch.response_index)
        self._flops += rows * self._share + head

    def read(self) -> dict[str, list[float]]:
        """Return the figures of this step, in the format of `Sums`."""
        figures = {
            f"{phase}_seconds": [self._seconds[phase]] for phase in ("recompute", "forward_backward", "optimizer")
        }
        return figures | {
            "update_seconds": [self._seconds["forward_backward"] + self._seconds["optimizer"]],
            "memory_peak_bytes": [float(self._memory())],
            "model_flops": [self._flops],
            "peak_flops": [self._peak],
        }

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # peak since the process started

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic()


def peak_flops(device: torch.device) -> float:
    """Return the device's entry of `PEAK_FLOPS`, or 0."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), 0.0)
