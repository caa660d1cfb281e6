"""Tiles: how a Mosaic GPU kernel reads, reduces and writes rows of blocks.

A tensor is seen as rows, one row a block. A CTA of 128 threads holds a tile of a few rows in
registers, a warp or part of one a row, so that the absmax of a block is a reduction over lanes.
A kernel covers whole tiles. The rest of a leaf, fewer elements than a tile and a block, gets the
same treatment from XLA: `Rest` has the methods of `Tile`, and one function serves both.

Mosaic GPU is experimental. What differs between the versions of JAX that are supported is here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

_WARPS, _LANES = 4, 32
PER_THREAD = 32
"""Elements of a tile in a thread, by default."""

TILE = _WARPS * _LANES * PER_THREAD
"""Elements of a tile, and the fewest that a leaf for kernels has."""

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


def why_not_blocks(block_size):
    """Why there are no kernels for a block size; None if there are."""
    if block_size in BLOCK_SIZES:
        return None
    sizes = ", ".join(map(str, BLOCK_SIZES[:-1])) + f" and {BLOCK_SIZES[-1]}"
    given = "one block per tensor" if block_size is None else block_size
    return f"there are kernels for block sizes {sizes}, not for {given}"


def cut(size, block, dtypes, per_thread=PER_THREAD):
    """Cuts a leaf whose arrays have these dtypes, with so many elements of a tile in a thread."""
    # A thread reads 16 bytes at once, at most, and of the widest array just these: so neighbouring
    # threads read whole sectors.
    vector = 16 // max(2, *(jnp.dtype(d).itemsize for d in dtypes))
    # A thread holds elements of one row if it can: then the fewest threads have to be asked for the
    # maximum of a row, and what is computed once for every row is computed by few.
    lanes = min(max(block // per_thread, 2), _LANES)
    rows = max(per_thread * _WARPS * _LANES // block, _WARPS * _LANES // lanes)
    return Cut(size, block, rows, lanes, vector)


def as_rows(x, block):
    """A tensor as rows of blocks where it consists of whole ones, else flat; a view for XLA."""
    # Only rows can be counted in 32 bits beyond 2**31 elements.
    return x.reshape(-1, block) if x.size % block == 0 else x.reshape(-1)


class _Rows:
    """Some rows of a leaf. Values are `(rows, block)`, or `(rows,)` with one for every block."""

    def __init__(self, cut: Cut, first, shape):
        self._cut, self._first, self._shape = cut, first, shape

    def spread(self, value):
        """Gives every element its block's value."""
        return lax.broadcast_in_dim(value, self._shape, (0,))

    def max(self, x):
        """The largest element of every block."""
        return jnp.max(x, axis=1)

    def sum(self, x):
        """The sum over all rows."""
        return jnp.sum(jnp.sum(x, axis=1), axis=0)

    def index(self):
        """Each element's index in the flattened tensor modulo 2**32, and what is beyond or None."""

        def iota(axis):
            return lax.broadcasted_iota(jnp.int32, self._shape, axis).astype(jnp.uint32)

        block = self._cut.block
        row = lax.convert_element_type(self._first, jnp.uint32) + iota(0)
        low = row * jnp.uint32(block) + iota(1)
        if self._cut.size <= 2**32:
            return low, None
        return low, row >> jnp.uint32(32 - (block.bit_length() - 1))


class Tile(_Rows):
    """The rows of one CTA."""

    def __init__(self, cut: Cut, interpret):
        self.number = lax.axis_index("tile")
        super().__init__(cut, self.number * cut.rows, (cut.rows, cut.block))
        self._interpret = interpret

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
        pl.when(condition)(short)
        pl.when(jnp.logical_not(condition))(general)

    def _place(self, ref):
        if len(ref.shape) == 2:
            return pl.ds(self._first, self._cut.rows)
        size = self._cut.rows * self._cut.block
        return pl.ds(self.number * size, size)


class Rest(_Rows):
    """Some rows after the last tile, for XLA. References hold all that comes after it.

    The rows are whole blocks, or the last block, which is shorter.
    """

    number = 0

    def __init__(self, cut: Cut, first, shape):
        super().__init__(cut, cut.covered // cut.block + first, shape)
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


def _rests(cut: Cut):
    blocks, short = divmod(cut.size - cut.covered, cut.block)
    pieces = [Rest(cut, 0, (blocks, cut.block))] if blocks else []
    return pieces + ([Rest(cut, blocks, (1, short))] if short else [])


def _after_tiles(cut: Cut, x):
    """Where in an array the rest begins; None if it is no array of elements or blocks."""
    if x.shape == (-(-cut.size // cut.block),) or x.ndim == 2 and x.size == cut.size:
        return cut.covered // cut.block
    return cut.covered if x.shape == (cut.size,) else None


def _run_rest(cut: Cut, body, read, written, made):
    """Runs the body on what the tiles leave; returns the new arrays and the sums of every piece.

    All is read before anything is written, and what is read is small: so XLA need not copy a leaf
    because some of it is still to be read.
    """

    def rest_of(x):
        start = _after_tiles(cut, jax.typeof(x))
        return x if start is None else x[start:]

    small_read, small_written = lax.optimization_barrier(
        (jax.tree.map(rest_of, read), jax.tree.map(rest_of, written))
    )
    small_made = jax.tree.map(lambda x: jnp.zeros_like(rest_of(x)), made)
    refs = jax.tree.map(jax.new_ref, (small_written, small_made))
    sums = [body(rest, small_read, *refs) for rest in _rests(cut)]
    new_written, new_made = jax.tree.map(jax.freeze, refs)
    for ref, x in zip(jax.tree.leaves(written), jax.tree.leaves(new_written), strict=True):
        ref[_after_tiles(cut, jax.typeof(ref)) :] = x
    made = jax.tree.map(
        lambda x, new: x.at[_after_tiles(cut, jax.typeof(x)) :].set(new), made, new_made
    )
    return made, sums


class Sums(NamedTuple):
    """What the body of a kernel has returned."""

    of_tiles: Any
    """Float32, a row for every tile."""
    of_rest: tuple[Any, ...]

    @property
    def total(self):
        """Over the whole leaf."""
        return jnp.sum(self.of_tiles, axis=0) + sum(self.of_rest)


def run_leaf(
    name, body: Callable, cut: Cut, read, written, out, *, sums: int = 0, interpret: Any = None
):
    """Runs `body(tile, read, written, out)` over a leaf, its tiles as one kernel of that name.

    Args:
      name: The name under which profiles show the kernel.
      body: The function, which may return a tuple of scalars, to be summed up.
      cut: How the leaf is cut into tiles.
      read: A tree of arrays. The body gets references to them.
      written: A tree of references (`jax.new_ref`), which the body may also write.
      out: A tree of `jax.ShapeDtypeStruct`, of arrays to be written from scratch.
      sums: How many scalars the body returns.
      interpret: `INTERPRET`, or None for a GPU.

    Returns:
      `(out, sums)`: the new arrays, and the `Sums` of what the body returned.
    """
    operands, in_tree = jax.tree.flatten((read, written))
    outs, out_tree = jax.tree.flatten(out)

    def on(tile, refs):
        read, written = in_tree.unflatten(refs[: len(operands)])
        return body(tile, read, written, out_tree.unflatten(refs[len(operands) :]))

    def kernel(*refs):
        tile = Tile(cut, interpret is not None)
        if sums:
            *refs, sums_ref = refs
            for i, x in enumerate(on(tile, refs)):
                sums_ref[tile.number, i] = x
        else:
            on(tile, refs)

    kernel.__name__ = name
    sums_type = [jax.ShapeDtypeStruct((cut.tiles, sums), jnp.float32)] if sums else []
    outs = plgpu.kernel(
        kernel,
        out_type=(*outs, *sums_type),
        grid=(cut.tiles,),
        grid_names=("tile",),
        # Square roots, logarithms and powers of two are then single instructions, good to 2 ulp.
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*operands)
    of_tiles, of_rest = outs[-1] if sums else None, []
    made = out_tree.unflatten(outs[: len(outs) - bool(sums)])
    if cut.covered < cut.size:
        made, of_rest = _run_rest(cut, body, read, written, made)
    return made, Sums(of_tiles, tuple(jnp.stack(x) for x in of_rest if sums))


INTERPRET = plgpu.InterpretGPUParams()
"""Makes `run` interpret a kernel on the CPU."""


def _load(ref, layout):
    # An optimized transfer would be the same instructions with more conditions.
    return plgpu.load(ref, layout=layout, optimized=False)


def _store(ref, value):
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:  # jax 0.11
        ref[...] = value
