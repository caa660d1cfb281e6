"""Checkpoints of bitsandbytes.

`files` and `arrays` are about what PyTorch wrote, and need no JAX; so this file imports nothing.
`slots` knows what an entry means, `load` and `export` what becomes of it here and there.
"""
