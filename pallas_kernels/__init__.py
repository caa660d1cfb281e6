"""8-bit blockwise quantization and fused optimizer steps for JAX.

The arithmetic under `optax_lamblion`, usable without Optax.
"""

from pallas_kernels.arithmetic.blocks import BLOCK_SIZES, absmax_shape
from pallas_kernels.arithmetic.codecs import CODEC_NAMES, Codec, get_codec
from pallas_kernels.quantize import dequantize, quantize

__all__ = [
    "BLOCK_SIZES",
    "CODEC_NAMES",
    "Codec",
    "absmax_shape",
    "dequantize",
    "get_codec",
    "quantize",
]
