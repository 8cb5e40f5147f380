"""The judge: runs untrusted programs against tests and tells their verdicts apart.

Imported by the zygote too, which must hold nothing but the standard library: this module imports nothing.
The Python API is `deepcoder_sandbox.api`.
"""
