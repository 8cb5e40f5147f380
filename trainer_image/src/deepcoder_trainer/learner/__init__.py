"""The learner: one Ray actor a rank, FSDP2 between them, and one face to the controller."""
