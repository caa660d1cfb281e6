"""Pieces: a leaf that makes its step part by part, because its state is not at hand all at once.

Gradient and parameter are there as a whole; slots and scales are those of one piece. A leaf may be
cut at every multiple of `GRAIN` elements. That is a multiple of every block and every tile of a
kernel, and norms are summed up grain by grain, so a leaf in pieces makes the step that it makes as
a whole, to the last bit.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.arithmetic.blocks import as_rows

GRAIN = 2**16
"""Elements."""

CUTTABLE = 16 * GRAIN
"""The fewest elements of a leaf that is cut."""


def can_be_cut(size, layers=None):
    """Whether a leaf with so many elements, in a stack of so many layers, can be in pieces.

    A layer, if it has norms of its own, has to begin with a grain.
    """
    return size >= CUTTABLE and (layers is None or size // layers % GRAIN == 0)


class Piece(NamedTuple):
    """Where a piece lies in its leaf.

    A leaf is seen as `as_rows` shows it: rows of blocks, or flat where its last block is short.
    """

    start: Any
    """The grain at which it begins, an int32 scalar: pieces of one size share their code."""
    size: int
    leaf_size: int
    block: int

    def of(self, x) -> Any:
        """The piece of an array that is shaped like the leaf; None of None."""
        if x is None:
            return None
        x = as_rows(x, self.block)
        return lax.dynamic_slice_in_dim(x, self.begin(x.ndim), self.count(x.ndim))

    def put(self, x, part):
        """An array that is shaped like the leaf, with this piece of it replaced."""
        rows = as_rows(x, self.block)
        part = part.reshape(-1, *rows.shape[1:])
        return lax.dynamic_update_slice_in_dim(rows, part, self.begin(rows.ndim), 0).reshape(
            x.shape
        )

    def begin(self, ndim):
        """Its first row, or element."""
        return self.start * (GRAIN // self.block if ndim == 2 else GRAIN)

    def count(self, ndim):
        """The number of its rows, or elements."""
        return self.size // self.block if ndim == 2 else self.size

    def by_rows(self, value):
        """Of a value for every layer of a stack, that of every row of the piece; or a scalar."""
        if not value.ndim:
            return value
        grains = self.leaf_size // GRAIN // value.size  # in a layer
        value = lax.dynamic_slice_in_dim(jnp.repeat(value, grains), self.start, self.size // GRAIN)
        return jnp.repeat(value, GRAIN // self.block)

    @property
    def first_block(self):
        """The number in its leaf of its first block."""
        return self.first_block_of(self.block)

    def first_block_of(self, size):
        """The number in its leaf of its first block, if blocks had this size."""
        return self.start.astype(jnp.uint32) * jnp.uint32(GRAIN // size)


def squares(x):
    """The sum of squares of every grain of an array, in a vector."""
    x = x.reshape(-1)
    whole = x.size // GRAIN * GRAIN
    sums = [sums_of_squares(x[:whole].reshape(-1, GRAIN))] if whole else []
    if whole < x.size:
        # By itself, or XLA's CPU compiler would contract other multiply-adds in the whole leaf than
        # in its pieces.
        rest = jnp.pad(x[whole:], (0, whole + GRAIN - x.size))
        sums.append(sums_of_squares(rest[None]))
    return jnp.concatenate(sums)


def sums_of_squares(rows):
    """The sum of squares of every row."""
    rows = jnp.square(rows)
    return lax.platform_dependent(rows, cpu=_sums_on_cpu, default=lambda x: jnp.sum(x, axis=1))


def _sums_on_cpu(x):
    """The sums of rows of numbers that are not negative."""

    # XLA's CPU compiler would leave a sum to a library, which takes ten times as long for it, from
    # a copy in memory. One of magnitudes it compiles itself; and eight numbers in each of 32 lanes
    # it vectorises, along with what computes them (sixteen in 16 lanes it does not).
    def add(total, x):
        return total + jnp.abs(x)

    def reduce(x, axis):
        return lax.reduce(x, np.zeros((), x.dtype), add, (axis,))

    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % 256)))
    rows = len(x)
    for _ in range(2):
        if x.size % (256 * rows) == 0:
            x = lax.optimization_barrier(reduce(x.reshape(-1, 8, 32), 1)).reshape(rows, -1)
    return reduce(x, 1)
