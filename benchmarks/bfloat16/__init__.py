"""Trainings with parameters of 16 bits, for `docs/bfloat16.md`.

`python -m benchmarks.bfloat16` measures, and `report` has the figures of it.
"""
