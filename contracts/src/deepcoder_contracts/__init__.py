"""Contracts between operator, trainer, sandbox and clients: what crosses a boundary, and nothing else.

There are documents (`recipe`, `stage`, `progress`, `manifest`, `exit`, `judge`, `curation`), and rules that both sides
must apply alike (`gate`, `lineage`, `layout`, `strict`, `fit`, `redaction`). The custom resources are in `api`. Import
from the modules.
"""
