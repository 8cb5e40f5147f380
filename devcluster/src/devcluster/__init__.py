"""A real single-node Kubernetes for a machine without Docker: build it, run it, load images into it, take it away."""
