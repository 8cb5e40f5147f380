"""`kubectl deepcoder`: runs from the command line, with nothing but a kubeconfig."""
