"""What a run came to, from its storage alone: curves, evaluations, lineage, one answer before and after."""
