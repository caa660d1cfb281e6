"""Quantization of one array as Triton kernels."""

import functools

from jax.custom_batching import sequential_vmap

from pallas_kernels.tiled import quantize as tiled
from pallas_kernels.tiled.rows import why_not_array
from pallas_kernels.triton.launch import BACKEND
from pallas_kernels.triton.tile import BLOCK_SIZES


def why_not(x, block_size, dtype):
    """Why there is no kernel for an array, and results or values of a dtype; None if there is."""
    return why_not_array(x, block_size, dtype, block_sizes=BLOCK_SIZES)


def quantize(x, key, **static):
    """As `tiled.quantize.quantize`; under `jax.vmap` one array follows another."""
    return sequential_vmap(functools.partial(tiled.quantize, BACKEND, **static))(x, key)


def dequantize(codes, absmax, **static):
    """As `tiled.quantize.dequantize`; under `jax.vmap` one array follows another."""
    return sequential_vmap(functools.partial(tiled.dequantize, BACKEND, **static))(codes, absmax)
