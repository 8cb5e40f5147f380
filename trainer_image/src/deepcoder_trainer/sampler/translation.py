"""Translates between our types and vLLM's: arguments, sampling parameters, responses, refusals.

Both ways to drive an engine use it. An output that the engine ended for its own reasons raises `SamplerLost`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.sampler.plugin import BACKEND
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, VersionSpan

FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}
"""vLLM's finish reasons of a complete response. Any other reason (abort, error, repetition) means that it is not."""


Part = Literal["weights", "kv_cache"]
"""vLLM's names of what a waking engine allocates memory for, in this order."""


def engine_arguments(model: str, settings: EngineSettings) -> dict[str, Any]:
    """Return vLLM's engine arguments."""
    common: dict[str, Any] = {
        "model": model,
        "trust_remote_code": False,
        "load_format": "dummy",  # the learner's weights are loaded before the first request
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "tensor_parallel_size": settings.tensor_parallel,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # the model's own sampling defaults must not bias training
        "weight_transfer_config": {"backend": BACKEND},
        "disable_log_stats": True,
        "enable_prefix_caching": settings.prefix_caching,
        "hf_overrides": {**settings.model_entries, **_head(settings)},
    }
    if settings.accelerators:
        # In sleep mode the engine frees its weights and KV cache for the learner on the same GPU.
        common |= {"gpu_memory_utilization": settings.memory_share, "enable_sleep_mode": settings.colocated}
    else:
        # On CPUs, chunked prefill of a seeded request crashes the engine.
        common |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": settings.kv_cache_bytes,
            "enable_chunked_prefill": False,
        }
    if settings.deterministic:
        common |= {"enable_chunked_prefill": False}
    return common


def _head(settings: EngineSettings) -> dict[str, str]:
    """Return the setting with which vLLM's head multiplies into float32, as the learner's does (`linear_logprob`).

    By default vLLM rounds logits to bfloat16, those between 16 and 32 by up to 0.06, and every ratio of learner to
    sampler contains the error. Its batch-invariant kernels, which `deterministic` needs, do not cover this product.
    """
    rounds = settings.dtype != "float32" and not settings.deterministic
    return {"head_dtype": "float32"} if rounds else {}


def sampling_parameters(request: GenerationRequest) -> Any:
    """Return vLLM's SamplingParams: one final output, with log-probabilities of the sampled tokens only."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_tokens,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,  # vLLM would decode each token by itself, and once more for its log-probability
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_from(output: Any, tokenizer: Any) -> Generation:
    """Convert a finished vLLM output, and decode its text once.

    `tokenizer` is the one that made the prompts (`load_tokenizer`), not vLLM's. vLLM uses the class that
    tokenizer_config.json names. Several models name Llama's, which ignores the decoder in their tokenizer.json and
    writes `defĠf():Ċ` for a line of code (DeepSeek-R1-Distill-Llama, DeepSeek-R1-0528-Qwen3-8B).
    Raises `SamplerLost` if the engine itself ended the output: a partial response must not be trained on.
    """
    completion = output.outputs[0]
    if completion.finish_reason not in FINISHES:
        raise SamplerLost(f"the engine ended request {output.request_id} itself: {completion.finish_reason}")
    flat = completion.logprobs
    return Generation(
        output_ids=np.asarray(completion.token_ids, np.int32),
        # The sampled token comes first among a position's entries.
        logprobs=np.asarray([flat.logprobs[start] for start in flat.start_indices], np.float32),
        finish=FINISHES[completion.finish_reason],
        text=tokenizer.decode(completion.token_ids, skip_special_tokens=True),
        versions=tuple(VersionSpan(int(v.version), v.start, v.end) for v in completion.weight_versions or ()),
    )


def refusal(error: BaseException) -> ValueError | None:
    """Return `error` as a ValueError if the request is invalid, None if the engine failed.

    vLLM's own validation error is not a ValueError.
    """
    from vllm.exceptions import VLLMValidationError

    if isinstance(error, ValueError):
        return error
    return ValueError(str(error)) if isinstance(error, VLLMValidationError) else None
