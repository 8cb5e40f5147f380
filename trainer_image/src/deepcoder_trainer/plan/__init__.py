"""Whether a run fits its GPUs, from sizes alone: asked before anything starts, and by hand before it is applied."""
