"""What `scripts/gpu_suite.py` runs on a machine with a GPU: stages, each a file here that lists its parts.

`stages.py` has their order, estimates and bounds; `schedule.py` runs each in a process of its own (`child.py`) and
stops what takes too long; `results.py` is the file that all of it goes to; `rehearsal.py` tries it all without a GPU.
"""
