"""The operator: DeepCoderRun and SandboxPool, reconciled.

Layers, lowest first (import-linter holds them): `api` types, the pure `domain`, pure `builders`, the `kube` and
`storage` clients, then `controllers`, `progress` and `sandbox`, which only carry out what the domain decided.
"""

VERSION = "0.1.0"
