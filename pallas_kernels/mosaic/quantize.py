"""Quantization of one array as Pallas kernels on the Mosaic GPU backend."""

from pallas_kernels.mosaic.launch import backend
from pallas_kernels.mosaic.tile import BLOCK_SIZES
from pallas_kernels.tiled import quantize as tiled
from pallas_kernels.tiled.rows import why_not_array


def why_not(x, block_size, dtype):
    """Why there is no kernel for an array, and results or values of a dtype; None if there is."""
    return why_not_array(x, block_size, dtype, block_sizes=BLOCK_SIZES)


def quantize(*args, interpret=None, **kwargs):
    """As `tiled.quantize.quantize`; `interpret` is `INTERPRET`, or None for a GPU."""
    return tiled.quantize(backend(interpret), *args, **kwargs)


def dequantize(*args, interpret=None, **kwargs):
    """As `tiled.quantize.dequantize`."""
    return tiled.dequantize(backend(interpret), *args, **kwargs)
