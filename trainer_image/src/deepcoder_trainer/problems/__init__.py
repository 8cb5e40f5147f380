"""From files to problems: reading datasets, choosing tests, encoding prompts, and the order of drawing.

Everything here is pure but `dataset`, which reads local files. What is remote is brought here first (`sources`).
"""
