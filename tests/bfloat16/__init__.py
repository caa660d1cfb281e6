"""Trains with parameters of 16 bits, for `docs/bfloat16.md`: `python -m tests.bfloat16`."""
