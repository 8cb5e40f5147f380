"""A task on which reinforcement learning improves a tiny model within minutes on two CPU cores.

Everything that a first run needs is generated from a seed: problems, a tokenizer, and a model that has learned by
example to write small programs carelessly. The real training loop does the rest; nothing in this package knows about
rewards.
"""
