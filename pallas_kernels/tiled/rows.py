"""Rows of a leaf, as kernels see them: a row is a block, and a tile a few rows.

A kernel is run over tiles. For all elements of its tile at once it asks what is asked here.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from pallas_kernels.arithmetic.pieces import GRAIN, Piece
from pallas_kernels.arithmetic.shards import Place

TILE = 4096
"""A multiple of every tile's elements, and the fewest that a leaf for kernels has."""

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.uint8)


def why_not_blocks(block_size, block_sizes):
    """Why there are no kernels for a block size, being for `block_sizes`; None if there are."""
    if block_size in block_sizes:
        return None
    sizes = ", ".join(map(str, block_sizes[:-1])) + f" and {block_sizes[-1]}"
    given = "one block per tensor" if block_size is None else block_size
    return f"there are kernels for block sizes {sizes}, not for {given}"


def why_not_array(x, block_size, *dtypes, block_sizes):
    """Why there are no kernels for an array and further ones of these dtypes, or None."""
    if reason := why_not_blocks(block_size, block_sizes):
        return reason
    for dtype in (x.dtype, *dtypes):
        if dtype not in _DTYPES:
            return f"there are kernels for float32, bfloat16 and float16, not for {dtype}"
    if x.size < TILE:
        return f"an array of fewer than {TILE} elements does not fill a kernel"
    if x.size % block_size and x.size >= 2**31:
        return f"from 2**31 elements on the block size has to divide their number, {x.size}"
    return None


def vector(dtypes):
    """How many neighbouring elements a thread reads at once, of arrays of these dtypes.

    16 bytes are the most, and of the widest array just these: so neighbouring threads read whole
    sectors.
    """
    return 16 // max(2, *(jnp.dtype(dtype).itemsize for dtype in dtypes))


class Rows:
    """Some rows of a leaf. Values are `(rows, block)`, or `(rows,)` with one for every block."""

    number: Any
    """Of the tile that they are."""
    reads_again = False
    """Whether the general way of a body had better read everything anew."""

    def __init__(self, cut, first, shape, piece: Piece | None = None):
        self._cut, self._first, self._shape, self._piece = cut, first, shape, piece

    def spread(self, value):
        """Gives every element its block's value."""
        return lax.broadcast_in_dim(value, self._shape, (0,))

    def max(self, x):
        """The largest element of every block, none of which is negative; NaN if there is one."""
        # By their bits, which order as the numbers do: XLA's CPU compiler may lose a NaN.
        return jnp.max(jnp.abs(x).view(jnp.int32), axis=1).view(jnp.float32)

    def sum(self, x):
        """The sum over all rows, of numbers that are not negative."""
        return self.total(self.row_sums(x))

    def row_sums(self, x):
        """The sum of every row, of numbers that are not negative."""
        # Of magnitudes: XLA's CPU compiler leaves a plain sum to a library, with what computes its
        # terms, and that undoes the addition by which codes are rounded.
        return lax.reduce(x, jnp.zeros((), x.dtype), lambda total, y: total + jnp.abs(y), (1,))

    def total(self, x):
        """The sum of one value for every row."""
        return jnp.sum(x, axis=0)

    def blocks(self, place: Place | None = None):
        """The number of every row in the tensor, uint32."""
        first = self._first
        if self._piece is not None:
            first = first + self._piece.begin(2)
        rows = lax.broadcasted_iota(jnp.int32, self._shape[:1], 0).astype(jnp.uint32)
        rows = lax.convert_element_type(first, jnp.uint32) + rows
        return rows if place is None else place.block(rows, self._cut.block)

    def index(self, place: Place | None = None):
        """Each element's index in the flattened tensor modulo 2**32, and what is beyond or None."""
        block, size = self._cut.block, self._cut.size
        if self._piece is not None:
            size = self._piece.leaf_size
        if place is not None:
            size = math.prod(place.shape)
        row = self.spread(self.blocks(place))
        column = lax.broadcasted_iota(jnp.int32, self._shape, 1).astype(jnp.uint32)
        # By eights, which share a hash (`hashing.bits_at`), so that compilers see that they do.
        eight = row * jnp.uint32(block // 8) + (column >> 3)
        low = (eight << 3) | (column & 7)
        return low, None if size <= 2**32 else row >> jnp.uint32(32 - (block.bit_length() - 1))

    def layer(self, layers):
        """The number of the layer that the tile is part of, where they consist of whole tiles."""
        leaf_size, tile = self._cut.size, self._cut.rows * self._cut.block
        first = 0
        if self._piece is not None:
            leaf_size, first = self._piece.leaf_size, self._piece.start * (GRAIN // tile)
        return lax.div(self.number + first, jnp.int32(leaf_size // layers // tile))
