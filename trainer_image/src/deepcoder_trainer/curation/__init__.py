"""Curates published problem sets into a training set: `deepcoder-trainer curate`, and `dataset.curation` of a run.

Rows of any known layout become Records (`problems.readers`). `filters`, `duplicates` and `contamination` decide which
of them stay, `verify` asks the judge about official solutions, and `output` and `report` write the result. The deciding
code is pure. `prepare` does everything before the judge: it streams, and keeps in memory only the part of each record
that the decision needs, while the records themselves are in a spool on disk. `journal` stores verdicts, in a file or in
storage (`journal_storage`). `sampling` measures pass rates of a model. `run` puts the parts together, for the command
(`standalone`) and for an attempt (`stage`).
"""
