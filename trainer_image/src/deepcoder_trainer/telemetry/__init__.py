"""What a run reports while it runs: metrics, samples, progress, a live view."""
