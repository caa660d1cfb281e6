"""Quantization of one array as kernels, whatever compiles them."""

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic.blocks import absmax_shape, as_rows
from pallas_kernels.arithmetic.codecs import as_bytes, decode, encode, storable
from pallas_kernels.arithmetic.hashing import uniform_at
from pallas_kernels.arithmetic.ladders import NEAREST
from pallas_kernels.tiled.ladders import for_kernel
from pallas_kernels.tiled.running import Backend, Small


def quantize(backend: Backend, x, key, block_size, codec, keep_nonzero):
    """`(codes, absmax)` of an array; `key` is a uint32 scalar or None for the nearest levels."""
    codec = for_kernel(codec)
    rows = as_rows(x, block_size)
    read = dict(x=rows, key=None if key is None else Small(key.reshape(1)))

    def quantize_blocks(tile, read, written, out, sums):
        values = storable(codec, tile.load(read["x"]).astype(jnp.float32))
        absmax = tile.max(jnp.abs(values))
        if read["key"] is None:
            prepared = tuple(map(tile.spread, codec.prepare(absmax, NEAREST)))
        else:
            u = uniform_at(read["key"][0], *tile.index())
            prepared = codec.prepare(tile.spread(absmax), u)
        codes, _ = encode(codec, values, prepared, keep_nonzero=keep_nonzero)
        tile.store(out["codes"], as_bytes(codes))
        tile.store_blocks(out["absmax"], absmax)

    out = dict(
        codes=jax.ShapeDtypeStruct(rows.shape, jnp.uint8),
        absmax=jax.ShapeDtypeStruct((-(-x.size // block_size),), jnp.float32),
    )
    cut = backend.cut(x.size, block_size, [x.dtype])
    out, _, _ = backend.run("quantize", quantize_blocks, cut, read, {}, out)
    absmax = out["absmax"].reshape(absmax_shape(x.shape, block_size))
    return out["codes"].reshape(x.shape), absmax


def dequantize(backend: Backend, codes, absmax, block_size, codec, dtype):
    """The array that codes and scales stand for."""
    codec = for_kernel(codec)
    rows = as_rows(codes, block_size)

    def dequantize_blocks(tile, read, written, out, sums):
        values = decode(codec, tile.load(read["codes"]))
        values = values * tile.spread(tile.load_blocks(read["absmax"]))
        tile.store(out["x"], values.astype(dtype))

    read = dict(codes=rows, absmax=absmax.reshape(-1))
    out = dict(x=jax.ShapeDtypeStruct(rows.shape, dtype))
    cut = backend.cut(codes.size, block_size, [dtype])
    out, _, _ = backend.run("dequantize", dequantize_blocks, cut, read, {}, out)
    return out["x"].reshape(codes.shape)
