"""Pure manifest builders: API types and domain values in, Kubernetes objects as plain dictionaries out."""
