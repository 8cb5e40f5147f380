"""Measuring models on problem sets at a length: the same problems and seeds for every target, so that they pair."""
