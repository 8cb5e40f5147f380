"""Computes from sizes alone whether a run fits its GPUs: at the start of an attempt, and for a command."""
