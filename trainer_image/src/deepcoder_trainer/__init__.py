"""GRPO+ training of code models, from two CPU cores to many GPU nodes on one code path."""
