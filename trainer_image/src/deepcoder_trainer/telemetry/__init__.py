"""What a run says about itself while it runs: metrics, samples, progress, a live view."""
