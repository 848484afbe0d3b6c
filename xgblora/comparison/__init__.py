"""Comparing methods: every method on every seed, each run a process of its own, and what can be said about the result.

`methods` says what is compared, `sweep` with which values, `runs` runs it, `results` reads what the runs left, `report`
makes of it what is known, and `table`, `ascii_plot` and `figures` show it.
"""
