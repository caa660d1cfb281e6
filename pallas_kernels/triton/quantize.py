"""Quantization of one array as Triton kernels."""

import functools

from pallas_kernels.tiled import quantize as tiled
from pallas_kernels.tiled.rows import why_not_array
from pallas_kernels.triton.launch import BACKEND
from pallas_kernels.triton.tile import BLOCK_SIZES


def why_not(x, block_size, dtype):
    """Why there is no kernel for an array, and results or values of a dtype; None if there is."""
    return why_not_array(x, block_size, dtype, block_sizes=BLOCK_SIZES)


quantize = functools.partial(tiled.quantize, BACKEND)
dequantize = functools.partial(tiled.dequantize, BACKEND)
