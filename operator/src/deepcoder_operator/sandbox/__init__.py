"""SandboxPools: the pass over a pool, the objects around its pods, and the poller that asks judges for their load.

What a pass decides is in `domain.pool_*`, what it makes in `builders.pool`.
"""
