"""The dashboard: a read-only page over runs, their curves, rollouts and lineage."""
