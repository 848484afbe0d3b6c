"""Runs: a whole run, from flags to a folder.

Three stages, each handed on to the next: `plan` needs flags alone, `prepare` loads data and model (`language_model`)
and makes the trainer, `fine_tune` carries it out. `dry_run` foresees it instead (`forecast`, `tensor_bytes`);
`measurement` measures before and after, `console` and `report` say what happens, and the figures draw it.
"""
