"""Leaves of so many elements that their numbers do not fit in 31 or 32 bits: the last tiles.

A kernel that was compiled for the large leaf is given the end of each array alone, and runs the
blocks of threads that work on it. It has to do what a kernel does with a shard that lies there.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.arithmetic.params import ROUNDINGS
from pallas_kernels.arithmetic.shards import Place
from tests.emulated import cases, launching, programs
from tests.gpu import comparing
from tests.gpu.check_step import SMALL_STEP, Case

ROWS, BLOCK = 48, 256
"""Of the end: whole tiles."""


def _last_tiles(rule, dtype, before, count=ROWS, **others):
    """The last `count` rows of a leaf that has so many before them."""
    rows = before + count
    poison = cases.DATA["poison"]["poison"]
    case = Case(rule, "params", (count, BLOCK), dtype, dtype, poison=poison, **others)
    given, (step, _) = comparing.inputs(case), programs.steps(comparing.spec(case))
    *arrays, dither = given[:6]
    place = Place((rows, BLOCK), case.shape, (jnp.uint32(before), None))
    shard = jax.device_get(step(*arrays, dither._replace(place=place), *given[6:]))
    large = _large(case, rows)
    kernels = iter(large)
    with launching.current().changed(lambda small: _at_the_end(next(kernels), small)):
        end = jax.device_get(step(*given))
    jax.tree.map(np.testing.assert_array_equal, end, shard)
    return {"kernels": len(large)}


_known = {}
"""By a step and a number of rows: a function is traced once."""


def _large(case, rows):
    """The kernels for a leaf of so many rows."""
    step, _ = programs.steps(comparing.spec(case))
    if (step, rows) not in _known:

        def large(x):
            shape = (rows, *x.shape[1:]) if x.ndim else ()
            return jax.ShapeDtypeStruct(shape, x.dtype)

        types = jax.tree.map(large, comparing.inputs(case))
        _known[step, rows] = launching.current().trace(step, *types)
    return _known[step, rows]


def _at_the_end(large, small):
    """A kernel for the large leaf, to be run on the end that the arrays of the small one are."""
    before = tuple(_bytes(x) - _bytes(y) for x, y in zip(large.types, small.types, strict=True))
    first = large.grid - small.grid
    return dataclasses.replace(large, first=first, before=before)


def _bytes(x):
    return math.prod(x.shape) * x.dtype.itemsize


def _checks(sizes, rules, dtypes):
    return {
        f"end of 2**{bits} elements/{rule}/{dtype}": functools.partial(
            _last_tiles, cases.RULES[rule], dtype, 2**bits // BLOCK
        )
        for bits in sizes for rule in rules for dtype in dtypes
    }  # fmt: skip


CHECKS = _checks((32,), ("lion", "lamb"), ("bfloat16",))
LONG = _checks((31, 34), ("lion", "adam", "lamb"), ("bfloat16",)) | _checks(
    (32,), ("adam", "lamb_amsgrad"), ("float32",)
)
LONG |= {
    f"end of 2**34 elements/{rule}/{rounding}": functools.partial(
        _last_tiles, made, "bfloat16", 2**34 // BLOCK, change=SMALL_STEP, rounding=rounding
    )
    for rule, made in cases.RULES.items() if rule in ("lion", "lamb")
    for rounding in ROUNDINGS[1:]
}  # fmt: skip
MASKED = {
    f"end of 2**33 elements/{rule}/not whole": functools.partial(
        _last_tiles, cases.RULES[rule], "bfloat16", 2**33 // BLOCK, ROWS - 1
    )
    for rule in ("lion", "lamb")
}
"""With a last tile that is not whole, for Triton: to Mosaic that is a rest, which is XLA's."""
