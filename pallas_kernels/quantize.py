"""Block-wise 8-bit quantization of an array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from pallas_kernels import dispatch
from pallas_kernels.arithmetic.blocks import absmax_shape, check_block_size
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.hashing import mix


def quantize(
    x: ArrayLike,
    *,
    block_size: int | None = 256,
    codec: str = "power",
    signed: bool = True,
    seed: ArrayLike | None = None,
    keep_nonzero: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Quantizes an array block-wise: 8-bit codes, and one float32 scale per block.

    Block `i` covers the elements from `i * block_size` up to `(i + 1) * block_size` of the
    row-major flattened array. Its scale `absmax` is the largest magnitude in it, and every element
    is stored as the code whose level times `absmax` is nearest. Code 0 is zero, and signed codes
    are in two's complement, so zero codes and zero scales both mean zeros.

    Args:
      x: Floating-point array of any shape. Non-finite elements are stored as 0, and magnitudes
        above 2**126 as 2**126.
      block_size: Elements per block: a power of two from 32 to 4096, or None for a single scale for
        the whole array.
      codec: `"power"`, `"dynamic"` (bitsandbytes' map) or `"linear"`.
      signed: Whether values have signs. Unsigned codes have finer levels, and store negative values
        as 0.
      seed: None rounds to nearest. An integer, or a uint32 scalar, selects stochastic rounding: one
        of the two neighbouring levels at random, such that the expected value is the value itself
        (except where `keep_nonzero`, or the sign rule of the signed dynamic map, raises it from 0).
        The same seed gives the same codes on every device and for every shape.
      keep_nonzero: Store nonzero values at the first level above 0 or higher.
      implementation: `"mosaic"` or `"triton"` for a kernel, which reads the array once and needs a
        GPU; `"xla"`; or None for a kernel if one can run.

    Returns:
      `(codes, absmax)`: uint8 in the shape of `x`; float32 of shape
      `(*x.shape[:-1], x.shape[-1] // block_size)` if the block size divides the last dimension,
      else `(ceil(x.size / block_size),)`. Together 1 + 4 / block_size bytes per element.

    Raises:
      TypeError: `x` is not floating point, or `seed` is not an integer.
      ValueError: `block_size`, `codec` or `implementation` is not one of the above, or the kernel
        you named cannot run.

    Examples:
      >>> codes, absmax = quantize(jnp.array([0.0, 0.5, -2.0]))
      >>> codes
      Array([  0,  80, 129], dtype=uint8)
      >>> absmax
      Array([2.], dtype=float32)
      >>> dequantize(codes, absmax)
      Array([ 0.       ,  0.4999065, -2.       ], dtype=float32)
    """
    check_block_size(block_size)
    dispatch.check_implementation(implementation)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"`quantize` needs a floating-point array, got {x.dtype}.")
    key = None if (key := _key(seed)) is None else mix(key)
    return _quantize(x, key, block_size, get_codec(codec, signed), keep_nonzero, implementation)


_STATIC = ("block_size", "codec", "keep_nonzero", "implementation")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _quantize(x, key, block_size, codec, keep_nonzero, implementation):
    static = dict(block_size=block_size, codec=codec, keep_nonzero=keep_nonzero)
    why_not = _why_not(x, block_size, x.dtype)
    return _run("quantize", implementation, why_not, static, (x, key))


def _why_not(x, block_size, dtype):
    return lambda name: dispatch.IMPLEMENTATIONS[name].arrays.why_not(x, block_size, dtype)


def _run(function, implementation, why_not, static, arrays):
    calls = {
        name: functools.partial(getattr(entry.arrays, function), **static)
        for name, entry in dispatch.IMPLEMENTATIONS.items()
    }
    return dispatch.call(dispatch.choice(implementation, why_not), implementation, calls, arrays)


def _key(seed):
    if seed is None:
        return None
    if isinstance(seed, int) and not isinstance(seed, bool):
        return jnp.uint32(seed % 2**32)
    is_array = isinstance(seed, jax.Array | np.ndarray | np.generic)
    if not is_array or not jnp.issubdtype(seed.dtype, jnp.integer) or seed.shape != ():
        raise TypeError(f"`seed` must be an int or an integer scalar, got {seed!r}.")
    return jnp.asarray(seed).astype(jnp.uint32)


def dequantize(
    codes: ArrayLike,
    absmax: ArrayLike,
    *,
    block_size: int | None = 256,
    codec: str = "power",
    signed: bool = True,
    dtype: DTypeLike = jnp.float32,
    implementation: str | None = None,
) -> jax.Array:
    """Decodes codes and scales to an array: the inverse of `quantize`, up to rounding.

    Args:
      codes: uint8 array of any shape.
      absmax: float32 scales, as `quantize` returns them.
      block_size: As in `quantize`.
      codec: As in `quantize`.
      signed: As in `quantize`.
      dtype: The dtype of the result; the arithmetic is in float32.
      implementation: `"mosaic"` or `"triton"` for a kernel, which needs a GPU, or `"xla"`. None
        means XLA, which moves as few bytes and can fuse the decoding into the code that uses it.

    Raises:
      TypeError: `codes` is not uint8, or `dtype` not floating point.
      ValueError: `absmax` does not have the shape that `codes` and `block_size` require;
        `block_size`, `codec` or `implementation` is unknown; or the kernel you named cannot run.

    Examples:
      >>> dequantize(jnp.array([0, 127], jnp.uint8), jnp.array([3.0]))
      Array([0., 3.], dtype=float32)
    """
    check_block_size(block_size)
    dispatch.check_implementation(implementation)
    codes, absmax = jnp.asarray(codes), jnp.asarray(absmax)
    if codes.dtype != jnp.uint8:
        raise TypeError(f"`codes` must be uint8, got {codes.dtype}.")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`dtype` must be a floating-point dtype, got {jnp.dtype(dtype)}.")
    shape = absmax_shape(codes.shape, block_size)
    if absmax.shape != shape:
        raise ValueError(
            f"`absmax` must have shape {shape} for codes of shape {codes.shape} with "
            f"`block_size={block_size}`, got {absmax.shape}."
        )
    return _dequantize(
        codes, absmax, block_size, get_codec(codec, signed), jnp.dtype(dtype), implementation
    )


@functools.partial(jax.jit, static_argnames=("block_size", "codec", "dtype", "implementation"))
def _dequantize(codes, absmax, block_size, codec, dtype, implementation):
    static = dict(block_size=block_size, codec=codec, dtype=dtype)
    why_not = _why_not(codes, block_size, dtype)
    implementation = implementation or dispatch.GENERAL
    return _run("dequantize", implementation, why_not, static, (codes, absmax))
