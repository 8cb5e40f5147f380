"""SandboxPools: the pass over a pool, the objects around its pods, and the poller that asks judges for their load.

`domain.pool_*` makes the decisions of a pass, and `builders.pool` builds the objects.
"""
