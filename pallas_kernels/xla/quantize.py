"""Quantization of one array in plain `jax.numpy`."""

import jax.numpy as jnp

from pallas_kernels.arithmetic.blocks import block_absmax, spread
from pallas_kernels.arithmetic.codecs import as_bytes, decode, encode, storable
from pallas_kernels.arithmetic.dtypes import compute_dtype
from pallas_kernels.arithmetic.hashing import uniform
from pallas_kernels.arithmetic.ladders import NEAREST


def why_not(x, block_size, dtype) -> str | None:
    """XLA takes every array."""
    del x, block_size, dtype
    return None


def quantize(x, key, block_size, codec, keep_nonzero):
    """`(codes, absmax)` of an array; `key` is a uint32 scalar or None for the nearest levels."""
    x = storable(codec, x.astype(compute_dtype(x.dtype)))
    (absmax,) = block_absmax([x], block_size)
    u = NEAREST if key is None else uniform(key, x.shape)
    prepared = codec.prepare(spread(absmax, x.shape, block_size), u)
    codes, _ = encode(codec, x, prepared, keep_nonzero=keep_nonzero)
    return as_bytes(codes), absmax


def dequantize(codes, absmax, block_size, codec, dtype):
    """The array that codes and scales stand for."""
    values = decode(codec, codes) * spread(absmax, codes.shape, block_size).astype(jnp.float32)
    return values.astype(dtype)
