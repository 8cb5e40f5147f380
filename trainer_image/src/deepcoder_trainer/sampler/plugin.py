"""Registers our weight transfer with vLLM: the entry point `vllm.general_plugins` of this distribution.

vLLM calls `register` in every process that it starts (front end, engine core, workers), sometimes more than once, so it
must be idempotent and cheap. vLLM loads the plugin wherever this distribution is installed, even where nothing is
trained. vLLM logs a failure here, which disables only the transfer.

Being called in all of them, it also asks Linux for AMX. On CPUs that have it, vLLM's attention in bfloat16 uses its
registers, which a process may only after it has asked (https://docs.kernel.org/arch/x86/xstate.html). vLLM 0.32 does
not ask: an engine in whose process nothing else had asked, as torch does before it multiplies in bfloat16, was killed
by SIGILL. And it has each process that vLLM starts end with the one that started it (`orphan`).
"""

from __future__ import annotations

from deepcoder_trainer.sampler.orphan import end_with_parent

BACKEND = "deepcoder"
"""Name of the backend in vLLM's weight-transfer config."""


def register() -> None:
    """Register the backend with vLLM in this process, which from now on may use AMX and ends with its parent."""
    import torch
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "deepcoder_trainer.sampler.weights", "SharedFileWeightTransfer"
        )
    torch.cpu._init_amx()  # false on CPUs without AMX
    end_with_parent()
