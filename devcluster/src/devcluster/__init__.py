"""A real single-node Kubernetes cluster for a machine without Docker: build it, run it, load images, remove it."""
