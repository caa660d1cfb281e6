"""What Shardy is told of a leaf: which of its axes and of its scales' belong together."""

import math
from typing import Any

from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
)


def factors(prefix, shape, block_size, devices):
    """For Shardy, the factors of a leaf's axes and of its scales', and the sizes of some of them.

    An axis is one factor. Where it is divided into blocks it has two, and shares the outer one with
    the scales; if any number of devices divides it, or Shardy would give some a part of an axis of
    the mesh.
    """
    names: list[Any] = [f"{prefix}{i}" for i in range(len(shape))]
    whole, outer = prefix + "scales", prefix + "blocks"
    if not shape or not block_size or 0 in shape:
        return ArrayMapping(*names), ArrayMapping(whole), {}
    if shape[-1] % block_size == 0:
        scales, axis, count, units = (
            [*names[:-1], outer],
            -1,
            shape[-1] // block_size,
            (block_size, 1),
        )
    else:
        rest = math.prod(shape[1:])
        rows = math.lcm(rest, block_size) // rest  # the fewest that are whole blocks
        if shape[0] % rows:
            return ArrayMapping(*names), ArrayMapping(whole), {}
        scales, axis, count, units = [outer], 0, shape[0] // rows, (rows, rows * rest // block_size)
    if count % devices:
        return ArrayMapping(*names), ArrayMapping(*scales[:-1], whole), {}
    # Shardy wants to know the sizes of factors that are nowhere a whole axis.
    sizes = {} if 1 in units else {outer: count}
    axes: list[Any] = [outer, outer]
    for i, unit in enumerate(units):
        if unit > 1:
            sizes[inner := f"{outer}_{i}"] = unit
            axes[i] = CompoundFactor(outer, inner)
    names[axis], scales[-1] = axes
    return ArrayMapping(*names), ArrayMapping(*scales), sizes
