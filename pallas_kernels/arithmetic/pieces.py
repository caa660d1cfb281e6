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


def squares(xs, again):
    """The sums of squares of every grain of arrays of one shape: a vector for each array.

    Args:
      xs: The arrays.
      again: Called for the same arrays, made a second time: what XLA sums up in two parts, it would
        keep in memory.
    """
    size = xs[0].size
    whole = size // GRAIN * GRAIN
    parts = []
    if whole:
        rows = (x.reshape(-1)[:whole].reshape(-1, GRAIN) for x in xs)
        parts.append(squares_of_rows(*rows))
    if whole < size:
        # By itself, or XLA's CPU compiler would contract other multiply-adds in the whole leaf than
        # in its pieces.
        rests = (x.reshape(-1)[whole:] for x in (again() if whole else xs))
        parts.append(squares_of_rows(*(jnp.pad(x, (0, -x.size % GRAIN))[None] for x in rests)))
    return tuple(map(jnp.concatenate, zip(*parts, strict=True)))


def squares_of_rows(*xs):
    """The sums of squares of every row of arrays of one shape: a vector for each array.

    What the arrays are computed from is read once for all of them.
    """
    xs = [jnp.square(x) for x in xs]
    return lax.platform_dependent(*xs, cpu=_sums_on_cpu, default=_sums)


def _sums(*xs):
    return tuple(jnp.sum(x, axis=1) for x in xs)


def _sums_on_cpu(*xs):
    """The sums of rows of numbers that are not negative."""

    # XLA's CPU compiler would leave a sum to a library, which takes ten times as long for it, from
    # a copy in memory. One of magnitudes it compiles itself; and eight numbers in each of 32 lanes
    # it vectorises, along with what computes them (sixteen in 16 lanes it does not).
    def add(totals, xs):
        return tuple(total + jnp.abs(x) for total, x in zip(totals, xs, strict=True))

    def reduce(xs, axis):
        return lax.reduce(tuple(xs), tuple(np.zeros((), x.dtype) for x in xs), add, (axis,))

    def by_eights(xs):
        sums = reduce([x.reshape(-1, 8, 32) for x in xs], 1)
        return [x.reshape(rows, -1) for x in lax.optimization_barrier(sums)]

    rows, size = xs[0].shape
    xs = [jnp.pad(x, ((0, 0), (0, -size % 256))) for x in xs]
    if size:
        xs = by_eights(xs)
    if xs[0].shape[1] % 256 == 0:
        xs = by_eights(xs)
    # Each by itself, as XLA adds up what is left in an order that loses fewer digits then.
    return tuple(reduce([x], 1)[0] for x in xs)
