"""LAMB against the rest: the same examples in batches of 32 and more, each at its best rate.

`python -m benchmarks.batches` measures, and `report` has the figures of it.
"""
