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
import numpy as np

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


def block_absmax(xs, block_size):
    """The largest magnitude of every block of arrays of one shape: a tuple, float32.

    Each is in `absmax_shape`. What the arrays are computed from is read once for all of them.
    """
    # Non-negative floats order as their bits do. XLA's CPU compiler hands a maximum of floats to a
    # library, from a copy in memory; one of integers it fuses with what computes the numbers.
    bits = [jnp.abs(x.astype(jnp.float32)).view(jnp.int32) for x in xs]
    return tuple(x.view(jnp.float32) for x in _block_maxima(bits, block_size))


def _block_maxima(xs, block_size):
    shape, size = xs[0].shape, xs[0].size
    if block_size is None:
        if not size:
            return [x.reshape(0) for x in xs]
        parts = _in_two_steps(_block_maxima([x.reshape(-1) for x in xs], 256))
        return [jnp.max(x)[None] for x in parts]
    if shape and shape[-1] % block_size == 0:
        return _row_maxima([x.reshape(*absmax_shape(shape, block_size), block_size) for x in xs])
    xs = [x.reshape(-1) for x in xs]
    whole = size // block_size * block_size
    blocks = _row_maxima([x[:whole].reshape(-1, block_size) for x in xs])
    if whole == size:
        return blocks
    rests = (jnp.max(x[whole:])[None] for x in xs)
    return [jnp.concatenate(pair) for pair in zip(blocks, rests, strict=True)]


def _row_maxima(xs):
    # Eight numbers in each of 32 lanes, then across the lanes: XLA's CPU compiler vectorises this
    # and fuses it with what computes the numbers. Other shapes it does number by number.
    *lead, n = xs[0].shape
    if n > 256:
        parts = _in_two_steps(_row_maxima([x.reshape(*lead, n // 256, 256) for x in xs]))
        return [jnp.max(x, -1) for x in parts]
    xs = [x.reshape(*lead, n // 32, 32) for x in xs]
    return jax.lax.platform_dependent(*xs, cpu=_maxima_in_one_pass, default=_maxima)


def _maxima(*xs):
    return [jnp.max(x, (-2, -1)) for x in xs]


def _maxima_in_one_pass(*xs):
    def larger(some, others):
        return tuple(map(jnp.maximum, some, others))

    axes = xs[0].ndim - 2, xs[0].ndim - 1
    return list(jax.lax.reduce(xs, (np.int32(0),) * len(xs), larger, axes))


# XLA's CPU compiler does not fuse three reductions in a row, but stores what goes into them.
_in_two_steps = jax.lax.optimization_barrier


def as_rows(x, block):
    """A tensor as rows of blocks where it consists of whole ones, else flat; a view for XLA."""
    # Only rows can be counted in 32 bits beyond 2**31 elements.
    return x.reshape(-1, block) if x.size % block == 0 else x.reshape(-1)


def spread(per_block, shape, block_size):
    """Gives every element of a tensor of this shape its block's value."""
    if block_size is None:
        return jnp.broadcast_to(jnp.sum(per_block), shape)  # of one value, or of none
    rows = (*per_block.shape, block_size)
    x = jax.lax.broadcast_in_dim(per_block, rows, tuple(range(per_block.ndim)))
    if not (shape and shape[-1] % block_size == 0):
        x = x.reshape(-1)[: math.prod(shape)]
    return x.reshape(shape)
