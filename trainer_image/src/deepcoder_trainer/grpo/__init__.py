"""GRPO+: advantages, loss, log-probabilities, packing, attention. Arithmetic only; no process, no storage."""
