"""Runs a function over a leaf: over its tiles as one Mosaic GPU kernel, over the rest by XLA."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.arithmetic.pieces import GRAIN, Piece
from pallas_kernels.mosaic.tile import Cut, Tile, rests


class Whole(NamedTuple):
    """Marks an array or a reference of a whole leaf, where a body is run over a piece of it."""

    array: Any


class Small(NamedTuple):
    """Marks an array that is neither of elements nor of blocks: a body gets it as it is."""

    array: Any


class Sums(NamedTuple):
    """What the body of a kernel has summed up, in parts."""

    cut: Cut
    of_tiles: Any
    """Float32, a row for every tile."""
    of_rest: Any
    """A row for the rest, or None."""

    @property
    def parts(self):
        """Those of every tile, and after them those of the rest."""
        if self.of_rest is None:
            return self.of_tiles
        return jnp.concatenate([self.of_tiles, self.of_rest])

    @property
    def total(self):
        """Over the whole leaf."""
        return self._after(0)

    def of_layers(self, layers):
        """Over every layer of a stack, which consists of whole tiles."""
        return jnp.sum(self.of_tiles.reshape(layers, -1, self.of_tiles.shape[1]), axis=1)

    def of_grains(self):
        """Over every grain."""
        tiles = GRAIN // (self.cut.rows * self.cut.block)  # in a grain
        whole = self.cut.size // GRAIN
        sums = self.of_tiles[: whole * tiles].reshape(whole, tiles, self.of_tiles.shape[1])
        sums = sums.sum(axis=1)
        if whole * GRAIN == self.cut.size:
            return sums
        return jnp.concatenate([sums, self._after(whole * tiles)[None]])

    def _after(self, tile):
        """Over that tile and all that follows."""
        total = jnp.sum(self.of_tiles[tile:], axis=0)
        return total if self.of_rest is None else total + jnp.sum(self.of_rest, axis=0)


class _Launch(NamedTuple):
    """How a function is run over a leaf: the arguments of `run_leaf` that are no arrays."""

    name: str
    body: Callable
    cut: Cut
    sums: int
    piece: Piece | None
    late: bool
    interpret: Any


def run_leaf(
    name,
    body: Callable,
    cut: Cut,
    read,
    written,
    out,
    *,
    sums: int = 0,
    piece: Piece | None = None,
    late: bool = False,
    interpret: Any = None,
):
    """Runs `body(tile, read, written, out, sums)` over a leaf, its tiles as one kernel.

    Args:
      name: The name under which profiles show the kernel.
      body: The function. It writes what is to be summed up over the leaf to row `tile.number` of
        the reference `sums`.
      cut: How the leaf is cut into tiles.
      read: A tree of arrays, of elements or blocks where they are not `Small`. The body gets
        references to them.
      written: A tree of arrays that the body may also write.
      out: A tree of `jax.ShapeDtypeStruct`, of arrays to be written from scratch.
      sums: How many sums there are.
      piece: Where the piece of a leaf lies that it is run over, if it is one. What is `Whole` in
        `read` and `written` is then of the whole leaf, and the body gets references to the piece.
      late: See `Spec.late`. `custom_partitioning` cannot lower `jax.new_ref`, and for
        `pl.run_state` there is no vectorization.
      interpret: `INTERPRET`, or None for a GPU.

    Returns:
      `(out, written, sums)`: the new arrays, those that were written, without marks, and the
      `Sums`, None if there are none.
    """
    if sums:
        out = dict(out, sums=jax.ShapeDtypeStruct((cut.tiles, sums), jnp.float32))
        if parts := rests(cut, piece):
            out["of_rest"] = jax.ShapeDtypeStruct((len(parts), sums), jnp.float32)

    launch = _Launch(name, body, cut, sums, piece, late, interpret)

    def run(refs):
        return _run(launch, read, refs, out)

    made, written = _with_references(run, written, out, late)
    written = _map(_array, written)
    if not sums:
        return made, written, None
    return made, written, Sums(cut, made.pop("sums"), made.pop("of_rest", None))


def _with_references(function, arrays, out, late):
    """What a function of references returns, shaped like `out`, and what they hold then."""
    if not late:
        refs = jax.tree.map(jax.new_ref, arrays)
        made = function(refs)
        return made, jax.tree.map(jax.freeze, refs)

    def run(refs):
        made, arrays = refs
        jax.tree.map(lambda ref, x: ref.__setitem__(..., x), made, function(arrays))

    empty = jax.tree.map(lambda x: lax.empty(x.shape, x.dtype), out)
    return pl.run_state(run)((empty, arrays))


def _run(launch, read, written, out):
    """The new arrays. What is `written` are references."""
    cut, piece, sums = launch.cut, launch.piece, launch.sums
    out = {key: x for key, x in out.items() if key != "of_rest"}
    start = None if piece is None else piece.start.reshape(1)
    operands, in_tree = jax.tree.flatten((read, written, start))
    outs, out_tree = jax.tree.flatten(out)

    def kernel(*refs):
        read, written, start = in_tree.unflatten(refs[: len(operands)])
        here = None if piece is None else piece._replace(start=start[0])
        read, written = _view(here, (read, written))
        out = out_tree.unflatten(refs[len(operands) :])
        sums_ref = out.pop("sums") if sums else None
        tile = Tile(cut, launch.interpret is not None, here)
        launch.body(tile, read, written, out, sums_ref)

    kernel.__name__ = launch.name
    made = out_tree.unflatten(
        plgpu.kernel(
            kernel,
            out_type=tuple(outs),
            grid=(cut.tiles,),
            grid_names=("tile",),
            # Roots, logarithms and powers of two are then single instructions, good to 2 ulp.
            compiler_params=plgpu.CompilerParams(approx_math=True),
            interpret=launch.interpret,
        )(*operands)
    )
    if cut.covered < cut.size:
        of_tiles = made.pop("sums") if sums else None
        made, of_rest = _run_rest(launch, read, written, made)
        made |= dict(sums=of_tiles, of_rest=of_rest) if sums else {}
    return made


def _map(function, *trees):
    return jax.tree.map(function, *trees, is_leaf=_is_marked)


def _is_marked(x):
    return isinstance(x, Whole | Small)


def _array(x):
    return x.array if isinstance(x, Whole | Small) else x


def _view(piece, tree):
    """A tree without marks, with references to the piece where it has them to the whole leaf."""

    def view(x):
        if not isinstance(x, Whole):
            return _array(x)
        ndim = len(x.array.shape)
        return x.array.at[pl.ds(piece.begin(ndim), piece.count(ndim))]

    return _map(view, tree)


class _AfterTiles(NamedTuple):
    """Where in an array the rest lies."""

    begin: Any
    count: int

    @classmethod
    def of(cls, cut: Cut, x, piece):
        """For an array of elements or blocks, or a reference to one."""
        shape = _array(x).shape
        # Elements are counted one by one where an array of them is flat, and else in rows.
        flat = len(shape) == 1 and shape != (-(-cut.size // cut.block),)
        before = cut.covered if flat else cut.covered // cut.block
        if isinstance(x, Whole):
            ndim = len(shape)
            return cls(piece.begin(ndim) + before, piece.count(ndim) - before)
        return cls(before, shape[0] - before)

    @property
    def index(self):
        """It as an index of an array."""
        return pl.ds(self.begin, self.count)


def _copied(tree):
    """The arrays in a tree as they are now, copied by one kernel; what is `Small` as it is."""
    # In one array of float32, in which all that a leaf consists of is exact: slices that are by
    # themselves are a kernel each.
    arrays = [x for x in jax.tree.leaves(tree, is_leaf=_is_marked) if not _is_marked(x)]
    flat = jnp.concatenate([x.reshape(-1).astype(jnp.float32) for x in arrays])
    flat = lax.optimization_barrier(flat)
    used = itertools.accumulate([0, *(x.size for x in arrays)])

    def copy(x):
        if _is_marked(x):
            return x
        begin = next(used)
        return flat[begin : begin + x.size].reshape(x.shape).astype(x.dtype)

    return _map(copy, tree)


def _run_rest(launch, read, written, made):
    """Runs the body on what the tiles leave; returns the new arrays and the sums of every part.

    All is read before anything is written, and what is read is small: so XLA need not copy a leaf
    because some of it is still to be read.
    """
    cut, piece, sums = launch.cut, launch.piece, launch.sums

    def rest_of(x):
        if isinstance(x, Small):
            return x
        place = _AfterTiles.of(cut, x, piece)
        return lax.dynamic_slice_in_dim(_array(x), place.begin, place.count)

    def rest_of_ref(x):
        return _array(x)[_AfterTiles.of(cut, x, piece).index]

    small_read, small_written = _copied((_map(rest_of, read), _map(rest_of_ref, written)))
    small_read = _map(_array, small_read)
    small_made = jax.tree.map(lambda x: jnp.zeros_like(_array(rest_of(x))), made)
    parts = rests(cut, piece)
    of_rest = [jnp.zeros((1, sums), jnp.float32) for _ in parts] if sums else [None] * len(parts)

    def run(refs):
        small_written, small_made, of_rest = refs
        for rest, sums_ref in zip(parts, of_rest, strict=True):
            launch.body(rest, small_read, small_written, small_made, sums_ref)

    _, (new_written, new_made, of_rest) = _with_references(
        run, (small_written, small_made, of_rest), None, launch.late
    )

    def write(x, new):
        _array(x)[_AfterTiles.of(cut, x, piece).index] = new

    _map(write, written, new_written)

    def put(x, new):
        place = _AfterTiles.of(cut, x, piece)
        return lax.dynamic_update_slice_in_dim(x, new, place.begin, 0)

    made = jax.tree.map(put, made, new_made)
    return made, jnp.concatenate(of_rest) if sums else None
