"""Registers our weight transfer with vLLM: the entry point `vllm.general_plugins` of this distribution.

vLLM calls `register` in every process that it starts (front end, engine core, workers), sometimes more than once, so it
must be idempotent and cheap. vLLM loads the plugin wherever this distribution is installed, even where nothing is
trained. vLLM logs a failure here, which disables only the transfer.
"""

from __future__ import annotations

BACKEND = "deepcoder"
"""Name of the backend in vLLM's weight-transfer config."""


def register() -> None:
    """Register the backend with vLLM in this process."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "deepcoder_trainer.sampler.weights", "SharedFileWeightTransfer"
        )
