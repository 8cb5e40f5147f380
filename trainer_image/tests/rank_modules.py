"""What a rank of `gloo_ranks` has loaded before it is forked; importing this loads it, without garbage collection.

Ranks are forked from a process that has only imported modules. What it leaves to them each rank would load again, and a
collection in a rank would search, and copy, all that they share.
"""

from __future__ import annotations

from deepcoder_trainer.heavy_imports import heavy_imports

with heavy_imports():
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.qwen2 import modeling_qwen2  # noqa: F401
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

    from deepcoder_trainer.learner import rank  # noqa: F401
