"""From published problem sets to what training reads: `deepcoder-trainer curate`, and `dataset.curation` of a run.

Rows of any known layout come as Records (`problems.readers`); `filters`, `duplicates` and `contamination` decide about
them; `verify` asks the judge about official solutions; `output` and `report` write what came of it. What decides is
pure. `prepare` is everything before the judge: it streams, and keeps of each record only what deciding needs; the
records themselves lie in a spool on disk. `journal` remembers verdicts, in a file or in storage (`journal_storage`); `sampling`
makes pass rates of a model. `run` puts the parts together, for the command (`standalone`) and for an attempt (`stage`).
"""
