"""A task on which reinforcement learning lifts a tiny model within minutes on two CPU cores.

Everything a first run needs is made on the spot and from a seed: problems, a tokenizer, and a model that has been
taught by example to write small programs, sloppily. What lifts it from there is the real training loop; nothing in
this package knows of rewards.
"""
