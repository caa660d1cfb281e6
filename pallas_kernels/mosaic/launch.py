"""Runs a function over a leaf: over its tiles as one Mosaic GPU kernel, over the rest by XLA."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.arithmetic.pieces import Piece
from pallas_kernels.mosaic.sizes import FEW, elements_of_a_thread
from pallas_kernels.mosaic.tile import Cut, Tile, cut, rests
from pallas_kernels.tiled.running import (
    Backend,
    Small,
    Sums,
    Whole,
    array_of,
    is_marked,
    map_marked,
    with_references,
)


def backend(interpret=None):
    """The `Backend`, for GPUs or for the interpreter."""
    return Backend(_cut, functools.partial(run_leaf, interpret=interpret))


def _cut(size, block, dtypes, spec=None):
    per_thread = FEW if spec is None else elements_of_a_thread(spec, dtypes)
    return cut(size, block, dtypes, per_thread)


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
    """As `Backend.run`: the tiles as one kernel, the rest by XLA.

    `interpret` is `INTERPRET`, or None for a GPU.
    """
    if sums:
        out = dict(out, sums=jax.ShapeDtypeStruct((cut.tiles, sums), jnp.float32))
        if parts := rests(cut, piece):
            out["of_rest"] = jax.ShapeDtypeStruct((len(parts), sums), jnp.float32)

    launch = _Launch(name, body, cut, sums, piece, late, interpret)

    def run(refs):
        return _run(launch, read, refs, out)

    made, written = with_references(run, written, out, late)
    written = map_marked(array_of, written)
    if not sums:
        return made, written, None
    return made, written, Sums(cut, made.pop("sums"), made.pop("of_rest", None))


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


def _view(piece, tree):
    """A tree without marks, with references to the piece where it has them to the whole leaf."""

    def view(x):
        if not isinstance(x, Whole):
            return array_of(x)
        ndim = len(x.array.shape)
        return x.array.at[pl.ds(piece.begin(ndim), piece.count(ndim))]

    return map_marked(view, tree)


class _AfterTiles(NamedTuple):
    """Where in an array the rest lies."""

    begin: Any
    count: int

    @classmethod
    def of(cls, cut: Cut, x, piece):
        """For an array of elements or blocks, or a reference to one."""
        shape = array_of(x).shape
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
    arrays = [x for x in jax.tree.leaves(tree, is_leaf=is_marked) if not is_marked(x)]
    flat = jnp.concatenate([x.reshape(-1).astype(jnp.float32) for x in arrays])
    flat = lax.optimization_barrier(flat)
    used = itertools.accumulate([0, *(x.size for x in arrays)])

    def copy(x):
        if is_marked(x):
            return x
        begin = next(used)
        return flat[begin : begin + x.size].reshape(x.shape).astype(x.dtype)

    return map_marked(copy, tree)


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
        return lax.dynamic_slice_in_dim(array_of(x), place.begin, place.count)

    def rest_of_ref(x):
        return array_of(x)[_AfterTiles.of(cut, x, piece).index]

    small_read, small_written = _copied(
        (map_marked(rest_of, read), map_marked(rest_of_ref, written))
    )
    small_read = map_marked(array_of, small_read)
    small_made = jax.tree.map(lambda x: jnp.zeros_like(array_of(rest_of(x))), made)
    parts = rests(cut, piece)
    of_rest = [jnp.zeros((1, sums), jnp.float32) for _ in parts] if sums else [None] * len(parts)

    def run(refs):
        small_written, small_made, of_rest = refs
        for rest, sums_ref in zip(parts, of_rest, strict=True):
            launch.body(rest, small_read, small_written, small_made, sums_ref)

    _, (new_written, new_made, of_rest) = with_references(
        run, (small_written, small_made, of_rest), None, launch.late
    )

    def write(x, new):
        array_of(x)[_AfterTiles.of(cut, x, piece).index] = new

    map_marked(write, written, new_written)

    def put(x, new):
        place = _AfterTiles.of(cut, x, piece)
        return lax.dynamic_update_slice_in_dim(x, new, place.begin, 0)

    made = jax.tree.map(put, made, new_made)
    return made, jnp.concatenate(of_rest) if sums else None
