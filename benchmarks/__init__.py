"""Measurements of optimizers, ours and others: what every figure in README and docs comes from.

Each kind has a folder with a command, `python -m benchmarks.KIND`, which measures and keeps what it
found as JSON in `results`. `python -m benchmarks.pages --write` puts the figures into the pages.
"""
