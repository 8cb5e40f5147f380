"""Contracts between operator, trainer, sandbox and clients: what crosses a boundary, and nothing else.

Documents (`recipe`, `stage`, `progress`, `manifest`, `exit`, `judge`, `curation`), and what has to be decided alike on
both sides of them (`gate`, `lineage`, `layout`, `strict`, `fit`, `redaction`). The custom resources are in `api`.
Import from the modules.
"""
