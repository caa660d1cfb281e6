"""Blocks: which elements of a tensor share a scale.

Block `i` covers elements `i * block_size` up to `(i + 1) * block_size` of the row-major flattened
tensor; the last one may be short. That order depends neither on the tensor's shape nor on how it
is sharded. Codes keep the tensor's own shape, and `absmax` lists one float32 per block: in the
shape `(*lead, last // block_size)` when blocks do not straddle rows, so that the tensor's sharding
fits it too, and flat otherwise.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

BLOCK_SIZES = tuple(2**k for k in range(5, 13))


def check_block_size(block_size):
    """Raises `ValueError` unless `block_size` is allowed; None means the whole tensor."""
    if block_size is not None and (type(block_size) is not int or block_size not in BLOCK_SIZES):
        raise ValueError(
            f"`block_size` must be a power of two from {BLOCK_SIZES[0]} to {BLOCK_SIZES[-1]}, "
            f"got {block_size!r}. The default is `block_size=256`."
        )


def absmax_shape(shape: Sequence[int], block_size: int | None) -> tuple[int, ...]:
    """The shape of `absmax` for a tensor of this shape; `block_size=None` is one block."""
    size = math.prod(shape)
    if block_size is None:
        return (min(size, 1),)
    if shape and shape[-1] % block_size == 0:
        return (*shape[:-1], shape[-1] // block_size)
    return (-(-size // block_size),)


def block_reduce(x, block_size, reduce):
    """Reduces every block of `x` to one value, in `absmax_shape`, by `reduce(x, axis)`."""
    if block_size is None:
        if not x.size:
            return x.reshape(0)
        return reduce(_in_two_steps(block_reduce(x.reshape(-1), 256, reduce)), 0)[None]
    shape = absmax_shape(x.shape, block_size)
    if x.shape and x.shape[-1] % block_size == 0:
        return _reduce_rows(x.reshape(*shape, block_size), reduce)
    x = x.reshape(-1)
    whole = x.size // block_size * block_size
    blocks = _reduce_rows(x[:whole].reshape(-1, block_size), reduce)
    if whole == x.size:
        return blocks
    return jnp.concatenate([blocks, reduce(x[whole:], 0)[None]])


def _reduce_rows(x, reduce):
    # Eight numbers in each of 32 lanes, then across the lanes: XLA's CPU compiler vectorises this
    # and fuses it with what computes `x`. Other shapes it does number by number.
    *lead, n = x.shape
    if n > 256:
        x = _in_two_steps(_reduce_rows(x.reshape(*lead, n // 256, 256), reduce))
        return reduce(x, -1)
    return reduce(reduce(x.reshape(*lead, n // 32, 32), -2), -1)


# XLA's CPU compiler does not fuse three reductions in a row, but stores what goes into them.
_in_two_steps = jax.lax.optimization_barrier


def block_absmax(x, block_size):
    """The largest magnitude of every block, float32."""
    # Non-negative floats order as their bits do. XLA's CPU compiler hands a maximum of floats to a
    # library, from a copy of `x` in memory; one of integers it fuses with what computes `x`.
    bits = jnp.abs(x.astype(jnp.float32)).view(jnp.int32)
    return block_reduce(bits, block_size, jnp.max).view(jnp.float32)


def as_rows(x, block):
    """A tensor as rows of blocks where it consists of whole ones, else flat; a view for XLA."""
    # Only rows can be counted in 32 bits beyond 2**31 elements.
    return x.reshape(-1, block) if x.size % block == 0 else x.reshape(-1)


def spread(per_block, shape, block_size):
    """Gives every element of a tensor of this shape its block's value."""
    if block_size is None:
        return jnp.broadcast_to(jnp.sum(per_block), shape)  # of one value, or of none
    x = jnp.broadcast_to(per_block[..., None], (*per_block.shape, block_size))
    if not (shape and shape[-1] % block_size == 0):
        x = x.reshape(-1)[: math.prod(shape)]
    return x.reshape(shape)
