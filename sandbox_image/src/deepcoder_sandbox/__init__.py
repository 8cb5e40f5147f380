"""The judge: runs untrusted programs against tests and tells their verdicts apart.

The zygote imports it too and must hold only the standard library, so this module imports nothing.
The Python API is `deepcoder_sandbox.api`.
"""
