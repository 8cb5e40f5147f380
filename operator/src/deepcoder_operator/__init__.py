"""The operator, which reconciles DeepCoderRuns and SandboxPools.

Layers, lowest first, enforced by import-linter: the pure `domain`, pure `builders`, the `kube` and `storage` clients,
then `controllers`, `progress` and `sandbox`, which only carry out what the domain decided.
"""

VERSION = "0.1.0"
