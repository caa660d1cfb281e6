"""Tiles: how a Triton kernel sees rows of blocks.

A program holds a tile of a few rows. The last one masks what lies beyond the end of the leaf, so a
leaf is one launch of any size.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pallas_kernels.tiled.rows import Rows, vector

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)

WARPS = 4
"""Of a program: programs of fewer would be many, and be launched one after the other."""

_THREADS, _WARP = 32 * WARPS, 32
_MOST = 32
"""The most elements of a tile that a thread holds."""


class Cut(NamedTuple):
    """How a leaf is cut into tiles, the last of which may reach beyond its end."""

    size: int
    block: int
    rows: int
    """Rows of a tile."""
    lanes: int
    """Threads that share a row."""
    vector: int
    """Neighbouring elements that a thread reads at once."""

    @property
    def elements(self):
        """Of a tile."""
        return self.rows * self.block

    @property
    def span(self):
        """Neighbouring elements that the threads of a row read at once."""
        return self.lanes * self.vector

    @property
    def shape(self):
        """Of a tile in Triton.

        Lanes are dealt out from the last axis on, so that the first one, the parts of a row that
        are read one after the other, is in the registers of a thread.
        """
        return self.block // self.span, self.rows, self.span

    @property
    def tiles(self):
        """The number of tiles."""
        return -(-self.size // self.elements)

    parts = tiles
    """As of `Backend.cut`."""

    @property
    def is_whole(self):
        """Whether the last tile ends where the leaf does."""
        return self.size % self.elements == 0


def cut(size, block, dtypes, per_thread):
    """Cuts a leaf whose arrays have these dtypes, with so many elements of a tile in a thread."""
    # A thread holds elements of one row: then few work out what is worked out once for a row. And
    # only rows that the threads of a warp cannot hold are divided between warps.
    lanes = max(min(block // per_thread, _WARP), block // _MOST)
    return Cut(size, block, _THREADS // lanes, lanes, vector(dtypes))


class Tile(Rows):
    """The rows of one program.

    Args:
      cut: `Cut`.
      number: Of the tile.
      inside: Which elements are in the leaf; None if all are.
      piece: As of `Rows`.
      branches: Whether `shortcut` has two branches, or does what is right in any case.
    """

    reads_again = True

    def __init__(self, cut: Cut, number: Any, inside: Any, piece=None, branches=True):
        super().__init__(cut, number * cut.rows, (cut.rows, cut.block), piece)
        self.number, self._inside, self._branches = number, inside, branches and inside is None

    def max(self, x):
        """As of all rows. The writer makes an instruction of it that keeps a NaN."""
        return jnp.max(x, axis=1)

    def row_sums(self, x):
        """As of all rows."""
        return jnp.sum(x if self._inside is None else jnp.where(self._inside, x, 0), axis=1)

    def load(self, ref):
        """The elements, or one value for every block, from a reference to them."""
        return ref[...]

    def store(self, ref, value):
        """The inverse of `load`."""
        ref[...] = value

    load_blocks, store_blocks = load, store

    def shortcut(self, condition, short, general):
        """Runs `short` if the condition holds, and else `general`, which is right in any case."""
        if self._branches:
            lax.cond(condition, short, general)
        else:
            general()
