"""Contracts between operator, trainer and sandbox: what crosses a boundary, and nothing else.

Import from the modules: `recipe`, `stage`, `gate`, `manifest`, `exit`, `progress`, `judge`, `layout`, `lineage`.
"""
