"""Reports a run from its storage alone: curves, evaluations, lineage, and one answer before and after training."""
