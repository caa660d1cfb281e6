"""What it takes to run a body over a leaf, whatever compiles it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.arithmetic.pieces import GRAIN


class Backend(NamedTuple):
    """What compiles bodies to kernels, and runs them: all in which implementations differ."""

    cut: Callable
    """`cut(size, block, dtypes, spec)`: how a leaf with arrays of these dtypes is cut into tiles.
    It has `size`, `block`, `rows`, `tiles` and `parts`, the number of rows in `Sums.parts`. `spec`
    is None for what is no step."""
    run: Callable
    """`run(name, body, cut, read, written, out, *, sums, piece, late)` runs
    `body(tile, read, written, out, sums)` over a leaf and returns `(out, written, sums)`.

    - `name`: under which profiles show the kernel.
    - `body`: what is computed for a tile, which is `Rows` with methods to load and store. It gets
      references, and writes what is to be summed up over the leaf to row `tile.number` of `sums`.
    - `cut`: how the leaf is cut into tiles.
    - `read`: a tree of arrays, of elements or blocks where they are not `Small`.
    - `written`: a tree of arrays that the body may also write, in place.
    - `out`: a tree of `jax.ShapeDtypeStruct`, of arrays to be written from scratch.
    - `sums`: how many sums there are; 0 if none.
    - `piece`: where the piece of a leaf lies that it is run over, if it is one. What is `Whole` in
      `read` and `written` is then of the whole leaf, and the body gets references to the piece.
    - `late`: see `Spec.late`.

    Returned are the new arrays, those that were written, without marks, and the `Sums` or None.
    """


class Whole(NamedTuple):
    """Marks an array or a reference of a whole leaf, where a body is run over a piece of it."""

    array: Any


class Small(NamedTuple):
    """Marks an array that is neither of elements nor of blocks: a body gets it as it is."""

    array: Any


class Sums(NamedTuple):
    """What the body of a kernel has summed up, in parts."""

    cut: Any
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


def with_references(function, arrays, out, late):
    """What a function of references returns, shaped like `out`, and what they hold then.

    `custom_partitioning` cannot lower `jax.new_ref`, and `pl.run_state` cannot be vectorised: so
    there are two ways, see `Spec.late`.
    """
    if not late:
        refs = jax.tree.map(jax.new_ref, arrays)
        made = function(refs)
        return made, jax.tree.map(jax.freeze, refs)

    def run(refs):
        made, arrays = refs
        jax.tree.map(lambda ref, x: ref.__setitem__(..., x), made, function(arrays))

    empty = jax.tree.map(lambda x: lax.empty(x.shape, x.dtype), out)
    return pl.run_state(run)((empty, arrays))


def map_marked(function, *trees):
    """As `jax.tree.map`, with what is marked as leaves."""
    return jax.tree.map(function, *trees, is_leaf=is_marked)


def is_marked(x):
    """Whether it is a mark."""
    return isinstance(x, Whole | Small)


def array_of(x):
    """What is marked, or the value itself."""
    return x.array if isinstance(x, Whole | Small) else x
