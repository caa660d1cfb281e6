"""Kernels in the Triton language, written from the jaxprs of `tiled` bodies."""
