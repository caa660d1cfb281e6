"""Batches: small leaves that are alike, as rows of one array.

On a GPU a kernel for a small leaf takes longer to launch than to run. XLA makes one kernel of what
is done to several leaves, up to 96 arrays in all, if they are parts of the same array.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.arithmetic.shards import is_divided
from pallas_kernels.leaf import Leaf
from pallas_kernels.tiled.rows import TILE


class Batch(NamedTuple):
    """Leaves that are alike."""

    numbers: tuple[int, ...]
    """Which leaves these are."""
    arrays: tuple[Any, ...]
    """All arrays of a `Leaf`, with a further axis for the leaves where each has its own."""
    axes: tuple[int | None, ...]
    """For every array that axis, 0; None where there is none."""
    tree: Any
    """The structure of a `Leaf`."""

    @property
    def rule(self):
        """The rule by which they step."""
        return self.tree.unflatten(self.arrays).spec.rule

    def map(self, function) -> Any:
        """What a function makes of every leaf, in arrays with a further axis."""

        def of_one(*arrays):
            return function(self.tree.unflatten(arrays))

        return jax.vmap(of_one, self.axes, axis_size=len(self.numbers))(*self.arrays)

    def leaves(self) -> dict[int, Leaf]:
        """The leaves, made of parts of the arrays."""

        def leaf(i):
            pairs = zip(self.arrays, self.axes, strict=True)
            return self.tree.unflatten(x if axis is None else x[i] for x, axis in pairs)

        return {number: leaf(i) for i, number in enumerate(self.numbers)}


def can_be_in_one(leaf: Leaf) -> bool:
    """Whether a leaf is small, in floating point, and here as it is."""
    return leaf.size < TILE and not leaf.coded and not leaf.spec.stacked and not is_divided(leaf.g)


MOST = 128
"""Leaves that share arrays: the time that XLA takes grows with the square of their number, and it
concatenates no more arrays at once."""


def make(leaves: dict[int, Leaf]) -> list[Batch]:
    """Batches of leaves that `can_be_in_one`, by number. A single leaf is not worth one."""
    if len(leaves) < 2:
        return []
    alike: dict[Any, Any] = {}
    for number, leaf in leaves.items():
        if leaf.spec.param_rounding == "nearest":
            # Of floating point nothing is rounded then, so its dither sets no leaf apart.
            leaf = leaf.replace(dither=None)
        arrays, tree = jax.tree.flatten(leaf)
        kind = tree, tuple(map(jax.typeof, arrays))
        alike.setdefault(kind, []).append((number, arrays))
    in_order = [(kind, member) for kind, members in alike.items() for member in members]
    parts = [in_order[i : i + MOST] for i in range(0, len(in_order), MOST)]
    return [batch for part in parts for batch in _in_few_arrays(_batches(part))]


def _batches(members):
    """Batches of neighbours that are alike. Their arrays are still sequences of arrays."""
    batches = []
    for _, group in itertools.groupby(members, key=lambda member: member[0]):
        kinds, pairs = zip(*group, strict=True)
        numbers, rows = zip(*pairs, strict=True)
        columns = tuple(zip(*rows, strict=True))
        axes = tuple(None if all(x is xs[0] for x in xs) else 0 for xs in columns)
        arrays = (xs[0] if axis is None else xs for xs, axis in zip(columns, axes, strict=True))
        batches.append(Batch(numbers, tuple(arrays), axes, kinds[0][0]))
    return batches


def _in_few_arrays(batches):
    """Batches whose arrays, sequences of them till now, are parts of one for every dtype."""
    flat: dict[Any, Any] = {}
    for batch in batches:
        for xs, axis in zip(batch.arrays, batch.axes, strict=True):
            if axis == 0 and jnp.ndim(xs[0]):
                flat.setdefault(xs[0].dtype, []).extend(x.reshape(-1) for x in xs)
    # Behind the barrier XLA does not know that the parts are arrays which it has already.
    flat = lax.optimization_barrier({dtype: jnp.concatenate(x) for dtype, x in flat.items()})
    used = dict.fromkeys(flat, 0)

    def part(xs):
        if not jnp.ndim(xs[0]):
            return jnp.stack(xs)  # which XLA sees through if they are one value
        shape, dtype = (len(xs), *xs[0].shape), xs[0].dtype
        begin, used[dtype] = used[dtype], used[dtype] + math.prod(shape)
        return flat[dtype][begin : used[dtype]].reshape(shape)

    def with_parts(batch):
        pairs = zip(batch.arrays, batch.axes, strict=True)
        return batch._replace(arrays=tuple(xs if axis is None else part(xs) for xs, axis in pairs))

    return list(map(with_parts, batches))
