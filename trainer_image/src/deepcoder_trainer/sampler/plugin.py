"""vLLM's door for our weight transfer: the entry point `vllm.general_plugins` of this distribution.

vLLM calls `register` in every process it starts (front end, engine core, workers), some more than once, so it must be
idempotent and cheap. vLLM looks for the plugin wherever this distribution is installed, also where nobody trains:
a failure here is logged by vLLM and costs nothing but the transfer.
"""

from __future__ import annotations

BACKEND = "deepcoder"
"""Name of the backend in vLLM's weight-transfer config."""


def register() -> None:
    """Make the backend known to this process's vLLM."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "deepcoder_trainer.sampler.weights", "SharedFileWeightTransfer"
        )
