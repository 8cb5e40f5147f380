"""The learner: one Ray actor per rank, FSDP2 between the ranks, and one interface for the controller."""
