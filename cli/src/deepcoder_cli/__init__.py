"""`kubectl deepcoder`: runs as people want to see them, with nothing but a kubeconfig."""
