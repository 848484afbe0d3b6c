"""Runs: a whole run, from flags to a folder.

`fine_tune` carries one out and `dry_run` foresees it (`forecast`, `live_memory`); `language_model` loads, `measurement`
measures before and after, `console` and `report` say what happens, and the figures draw it.
"""
