"""Records: what a run leaves on disk, and how a run that goes on takes it up.

`run_folder` names the files, `base_identity` keeps which base they are of, `run_files` writes those that grow,
`step_losses` reads the curve, `checkpoint` holds all that it takes to go on. Reading them imports no trainer.
"""
