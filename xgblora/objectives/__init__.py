"""Objectives: what a step minimises, a callable `(model, batch) -> losses`.

`texts` has those of scores and of whole texts, `answer_f1` that of written answers, and `of_task` says which goes with
which task.
"""
