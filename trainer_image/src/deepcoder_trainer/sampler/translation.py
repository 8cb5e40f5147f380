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
"""vLLM's reasons for the end of a response; all others (abort, error, repetition) are no end of it."""


Part = Literal["weights", "kv_cache"]
"""What an engine that slept takes memory for, in this order; vLLM's own names."""


def engine_arguments(model: str, settings: EngineSettings) -> dict[str, Any]:
    """vLLM's engine arguments."""
    common: dict[str, Any] = {
        "model": model,
        "trust_remote_code": False,
        "load_format": "dummy",  # the learner's weights come before the first request
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
        "hf_overrides": dict(settings.model_entries),
    }
    if settings.accelerators:
        # Asleep, it leaves the learner on its card what it had taken for weights, keys and values.
        common |= {"gpu_memory_utilization": settings.memory_share, "enable_sleep_mode": settings.colocated}
    else:
        # A seeded request whose prefill is split ends the engine on CPUs, hence no chunked prefill.
        common |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": settings.kv_cache_bytes,
            "enable_chunked_prefill": False,
        }
    if settings.deterministic:
        common |= {"enable_chunked_prefill": False}
    return common


def sampling_parameters(request: GenerationRequest) -> Any:
    """vLLM's SamplingParams of a request: one final answer, log-probabilities of the sampled tokens alone."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_tokens,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,  # vLLM would decode token by token, and each again for its log-probability
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_from(output: Any, tokenizer: Any) -> Generation:
    """A finished vLLM output as our value, its text decoded once.

    `tokenizer` is the one that made the prompts (`load_tokenizer`), not vLLM's. vLLM takes the class that
    tokenizer_config.json names. Several models name Llama's, which ignores the decoder in their tokenizer.json and
    writes `defĠf():Ċ` for a line of code (DeepSeek-R1-Distill-Llama, DeepSeek-R1-0528-Qwen3-8B).
    Raises `SamplerLost` for an output that ended for a reason of the engine's: half a response is none to learn from.
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
    """The error as the request's own fault, None if it is the engine's. vLLM's own kind is no ValueError."""
    from vllm.exceptions import VLLMValidationError

    if isinstance(error, ValueError):
        return error
    return ValueError(str(error)) if isinstance(error, VLLMValidationError) else None
