"""Asking judges: a client that spreads submissions over a pool, and a judge of the trainer's own."""
