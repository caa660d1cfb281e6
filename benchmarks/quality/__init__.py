"""What 8-bit state changes: trainings and synthetic gradients, next to float32.

`python -m benchmarks.quality` measures, and `report` has the figures of it.
"""
