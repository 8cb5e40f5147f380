"""Comparators: pure functions that decide whether what a program gave is what was expected.

They run in the judge, on the trusted side. The program's text is hostile: each comparator's work and memory are bounded
by the size of the expected output, however long the program's is.
"""
