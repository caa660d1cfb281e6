"""Traces the body of a kernel to a jaxpr, of what one program sees of every array."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic.pieces import Piece
from pallas_kernels.tiled.running import Small, Whole, array_of
from pallas_kernels.triton.tile import Cut, Tile


class Pointer(NamedTuple):
    """A parameter of a kernel: where an array begins, and what a program sees of it."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    """Of what a program sees: `(rows, block)` elements, `(rows,)` values of blocks, or all."""
    kind: str
    """"elements", "blocks" or "small"."""
    of_piece: bool = False
    """Whether it is of a whole leaf of which a piece is stepped."""

    @classmethod
    def of(cls, name, x, cut):
        """Of an array that may be marked."""
        array = array_of(x)
        if isinstance(x, Small):
            kind, shape = "small", array.shape
        elif array.shape == (-(-cut.size // cut.block),):
            kind, shape = "blocks", (cut.rows,)
        else:
            kind, shape = "elements", (cut.rows, cut.block)
        return cls(name, jnp.dtype(array.dtype), shape, kind, isinstance(x, Whole))


class Traced(NamedTuple):
    """A body as a function of the number of a tile, of what is in the leaf, and of pointers."""

    jaxpr: Any
    """Closed. It makes references of the pointers, and returns nothing."""
    is_whole: bool
    """Whether all of the tile is in the leaf."""


def trace(body, cut: Cut, tree, pointers: list[Pointer], piece: Piece | None, is_whole) -> Traced:
    """Traces `body(tile, read, written, out)`.

    Args:
      body: The function.
      cut: How the leaf is cut.
      tree: The structure of `(given, out)`, with `pointers` as leaves. `given` is a dict of what
        the body is given, and of `start`.
      pointers: `Pointer`.
      piece: Where the piece of a leaf lies, with any `start`.
      is_whole: Whether the tile is in the leaf as a whole.
    """

    def function(number, inside, *arrays):
        given, out = tree.unflatten(map(jax.new_ref, arrays))
        start = given.pop("start")
        here = None if piece is None else piece._replace(start=start[0])
        body(Tile(cut, number, None if is_whole else inside, here), **given, out=out)

    number = jax.ShapeDtypeStruct((), jnp.int32)
    inside = jax.ShapeDtypeStruct((cut.rows, cut.block), bool)
    seen = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in pointers]
    return Traced(jax.make_jaxpr(function)(number, inside, *seen), is_whole)
