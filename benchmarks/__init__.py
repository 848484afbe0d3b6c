"""Benchmarks: `pytest benchmarks/ --benchmark-only`. Every case checks its result before it is timed."""
