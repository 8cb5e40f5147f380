"""Measures models on problem sets at a given length. All targets get the same problems and seeds."""
