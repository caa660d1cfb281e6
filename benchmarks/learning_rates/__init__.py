"""Losses by learning rate, in 32 and in 8 bits, for `docs/hyperparameters.md`.

`python -m benchmarks.learning_rates` measures, and `report` has the figures of it.
"""
