"""Contracts between operator, trainer, sandbox and clients: what crosses a boundary, and nothing else.

Import from the modules: `recipe`, `stage`, `gate`, `manifest`, `exit`, `progress`, `judge`, `layout`, `lineage`; the
custom resources are in `api`.
"""
