"""Reports of a run: metrics, samples, progress, a live view."""
