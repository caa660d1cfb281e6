"""Tiles: how a Mosaic GPU kernel reads, reduces and writes rows of blocks.

A tensor is seen as rows, one row a block. A CTA of 128 threads holds a tile of a few rows in
registers, a warp or part of one a row, so that the absmax of a block is a reduction over lanes.
A kernel covers whole tiles. The rest of a leaf, fewer elements than a tile and a block, gets the
same treatment from XLA: `Rest` has the methods of `Tile`, and one function serves both.

Mosaic GPU is experimental. What differs between the versions of JAX that are supported is here.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.arithmetic.pieces import Piece
from pallas_kernels.tiled.rows import Rows, vector

_WARPS, _LANES = 4, 32

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024)
"""A tile is four rows at least, and no more than the registers of its threads hold."""


class Cut(NamedTuple):
    """How a leaf is cut into tiles and a rest."""

    size: int
    block: int
    rows: int
    """Rows of a tile."""
    lanes: int
    """Threads that share a row."""
    vector: int
    """Neighbouring elements that a thread reads at once."""

    @property
    def tiles(self):
        """The number of whole tiles."""
        return self.size // (self.rows * self.block)

    @property
    def parts(self):
        """The number of parts of the sums over a leaf: of the tiles, and of what `rests` says."""
        return self.tiles + len(rests(self))

    @property
    def covered(self):
        """The elements in whole tiles."""
        return self.tiles * self.rows * self.block

    @property
    def layout(self):
        """How the elements of a tile lie in the threads of a CTA.

        A thread reads its elements of a row in pieces, and the threads that share the row read
        neighbouring pieces.
        """
        span, rows = self.lanes * self.vector, _LANES // self.lanes  # what a warp reads at once
        outer, inner = (_WARPS * rows, self.block), (self.vector,)
        if rows > 1:
            tiling = plgpu.Tiling((outer, (rows, span), inner))
            return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)
        # Mosaic wants no step in a tiling that changes nothing.
        middle = () if span == self.block else ((span,),)
        tiling, warp_dim = plgpu.Tiling((outer, *middle, inner)), -3 - len(middle)
        return plgpu.Layout.TILED(tiling, warp_dims=(warp_dim,), lane_dims=(-2,), vector_dim=-1)


def cut(size, block, dtypes, per_thread):
    """Cuts a leaf whose arrays have these dtypes, with so many elements of a tile in a thread."""
    # A thread holds elements of one row if it can: then the fewest threads have to be asked for the
    # maximum of a row, and what is computed once for every row is computed by few.
    lanes = min(max(block // per_thread, 2), _LANES)
    rows = max(per_thread * _WARPS * _LANES // block, _WARPS * _LANES // lanes)
    return Cut(size, block, rows, lanes, vector(dtypes))


class Tile(Rows):
    """The rows of one CTA."""

    def __init__(self, cut: Cut, interpret, piece=None):
        self.number = lax.axis_index("tile")
        super().__init__(cut, self.number * cut.rows, (cut.rows, cut.block), piece)
        self._interpret = interpret

    def max(self, x):
        """As of all rows. The instruction for it keeps a NaN."""
        return super().max(x) if self._interpret else jnp.max(x, axis=1)

    def row_sums(self, x):
        """As of all rows."""
        return super().row_sums(x) if self._interpret else jnp.sum(x, axis=1)

    def load(self, ref):
        """The elements, from a reference to a tensor as `as_rows` returns it."""
        if self._interpret:  # the interpreter cannot reshape references, and ignores layouts
            return ref[self._place(ref)].reshape(self._shape)
        view = ref.at[self._place(ref)]
        return _load(view if len(ref.shape) == 2 else view.reshape(self._shape), self._cut.layout)

    def store(self, ref, value):
        """The inverse of `load`."""
        place = self._place(ref)
        if self._interpret:
            ref[place] = value if len(ref.shape) == 2 else value.reshape(-1)
        else:
            view = ref.at[place]
            _store(view if len(ref.shape) == 2 else view.reshape(self._shape), value)

    def load_blocks(self, ref):
        """One value for every block, from a reference to the vector of them."""
        rows = pl.ds(self._first, self._cut.rows)
        if self._interpret:
            return ref[rows]
        return _load(ref.at[rows], self._cut.layout.reduce(1))

    def store_blocks(self, ref, value):
        """The inverse of `load_blocks`."""
        rows = pl.ds(self._first, self._cut.rows)
        if self._interpret:
            ref[rows] = value
        else:
            _store(ref.at[rows], value)

    def shortcut(self, condition, short, general):
        """Runs `short` if the condition holds, and else `general`, which is right in any case."""
        pl.when(jnp.logical_not(condition))(general)
        pl.when(condition)(short)

    def _place(self, ref):
        if len(ref.shape) == 2:
            return pl.ds(self._first, self._cut.rows)
        size = self._cut.rows * self._cut.block
        return pl.ds(self.number * size, size)


class Rest(Rows):
    """Some rows after the last tile, for XLA. References hold all that comes after it.

    The rows are whole blocks, or the last block, which is shorter.
    """

    number = 0

    def __init__(self, cut: Cut, first, shape, piece=None):
        super().__init__(cut, cut.covered // cut.block + first, shape, piece)
        self._at = first

    def load(self, ref):
        """As `Tile.load`."""
        return ref[self._place(ref)].reshape(self._shape)

    def store(self, ref, value):
        """As `Tile.store`."""
        ref[self._place(ref)] = value if len(ref.shape) == 2 else value.reshape(-1)

    def load_blocks(self, ref):
        """As `Tile.load_blocks`."""
        return ref[self._at : self._at + self._shape[0]]

    def store_blocks(self, ref, value):
        """As `Tile.store_blocks`."""
        ref[self._at : self._at + self._shape[0]] = value

    def shortcut(self, condition, short, general):
        """Runs `general`: there is little to be saved."""
        del condition, short
        general()

    def _place(self, ref):
        if len(ref.shape) == 2:
            return slice(self._at, self._at + self._shape[0])
        start = self._at * self._cut.block
        return slice(start, start + self._shape[0] * self._shape[1])


def rests(cut: Cut, piece: Piece | None = None):
    """What whole tiles leave of a leaf, in up to two parts."""
    blocks, short = divmod(cut.size - cut.covered, cut.block)
    parts = [Rest(cut, 0, (blocks, cut.block), piece)] if blocks else []
    return parts + ([Rest(cut, blocks, (1, short), piece)] if short else [])


INTERPRET = plgpu.InterpretGPUParams()
"""Makes a kernel run in the interpreter, on the CPU."""


def _load(ref, layout):
    # An optimized transfer would be the same instructions with more conditions.
    return plgpu.load(ref, layout=layout, optimized=False)


def _store(ref, value):
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:  # jax 0.11
        ref[...] = value
