"""Comparators: pure functions from what a program gave and what was expected to right or wrong.

They run in the judge, on the trusted side. The program's text is hostile: each comparator's work and memory are bounded
by the expected output's size, however long the other is.
"""
