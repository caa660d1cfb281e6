"""Runs a function over a leaf: over its tiles as one Mosaic GPU kernel, over the rest by XLA."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_tile import Cut, Tile, rests


class Sums(NamedTuple):
    """What the body of a kernel has summed up, in pieces."""

    of_tiles: Any
    """Float32, a row for every tile."""
    of_rest: Any
    """A row for the rest, or None."""

    @property
    def total(self):
        """Over the whole leaf."""
        total = jnp.sum(self.of_tiles, axis=0)
        return total if self.of_rest is None else total + jnp.sum(self.of_rest, axis=0)


def run_leaf(
    name, body: Callable, cut: Cut, read, written, out, *, sums: int = 0, interpret: Any = None
):
    """Runs `body(tile, read, written, out, sums)` over a leaf, its tiles as one kernel.

    Args:
      name: The name under which profiles show the kernel.
      body: The function. It writes what is to be summed up over the leaf to row `tile.number` of
        the reference `sums`.
      cut: How the leaf is cut into tiles.
      read: A tree of arrays. The body gets references to them.
      written: A tree of references (`jax.new_ref`), which the body may also write.
      out: A tree of `jax.ShapeDtypeStruct`, of arrays to be written from scratch.
      sums: How many sums there are.
      interpret: `INTERPRET`, or None for a GPU.

    Returns:
      `(out, sums)`: the new arrays, and the `Sums`, None if there are none.
    """
    if sums:
        out = dict(out, sums=jax.ShapeDtypeStruct((cut.tiles, sums), jnp.float32))
    operands, in_tree = jax.tree.flatten((read, written))
    outs, out_tree = jax.tree.flatten(out)

    def kernel(*refs):
        read, written = in_tree.unflatten(refs[: len(operands)])
        out = out_tree.unflatten(refs[len(operands) :])
        sums_ref = out.pop("sums") if sums else None
        body(Tile(cut, interpret is not None), read, written, out, sums_ref)

    kernel.__name__ = name
    made = out_tree.unflatten(
        plgpu.kernel(
            kernel,
            out_type=tuple(outs),
            grid=(cut.tiles,),
            grid_names=("tile",),
            # Roots, logarithms and powers of two are then single instructions, good to 2 ulp.
            compiler_params=plgpu.CompilerParams(approx_math=True),
            interpret=interpret,
        )(*operands)
    )
    of_tiles = made.pop("sums") if sums else None
    of_rest = None
    if cut.covered < cut.size:
        made, of_rest = _run_rest(cut, body, read, written, made, sums)
    return made, Sums(of_tiles, of_rest) if sums else None


def _after_tiles(cut: Cut, x):
    """Where in an array the rest begins; None if it is no array of elements or blocks."""
    if x.shape == (-(-cut.size // cut.block),) or x.ndim == 2 and x.size == cut.size:
        return cut.covered // cut.block
    return cut.covered if x.shape == (cut.size,) else None


def _run_rest(cut: Cut, body, read, written, made, sums):
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
    of_rest = []
    for rest in rests(cut):
        sums_ref: Any = jax.new_ref(jnp.zeros((1, sums), jnp.float32)) if sums else None
        body(rest, small_read, *refs, sums_ref)
        of_rest += [jax.freeze(sums_ref)] if sums else []
    new_written, new_made = jax.tree.map(jax.freeze, refs)
    for ref, x in zip(jax.tree.leaves(written), jax.tree.leaves(new_written), strict=True):
        ref[_after_tiles(cut, jax.typeof(ref)) :] = x
    made = jax.tree.map(
        lambda x, new: x.at[_after_tiles(cut, jax.typeof(x)) :].set(new), made, new_made
    )
    return made, jnp.concatenate(of_rest) if sums else None
