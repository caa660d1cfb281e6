"""Splits: how a leaf is divided over a mesh, so that every shard consists of whole blocks."""

import math
import warnings
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.arithmetic.blocks import BLOCK_SIZES
from pallas_kernels.arithmetic.shards import Place, keeps_blocks


class Split(NamedTuple):
    """How a leaf is divided."""

    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    """For every axis of the leaf, the mesh axes that divide it, the outermost first."""
    sizes: dict[str, int]
    """Devices along every mesh axis."""
    asked: tuple[tuple[str, ...], ...]
    """What `axes` would be if blocks could be cut."""

    @property
    def names(self):
        """The mesh axes over which the leaf is divided."""
        return frozenset(name for names in self.axes for name in names)

    @property
    def spec(self):
        """The partition spec of the leaf."""
        return _spec(self.axes)

    @property
    def shard_shape(self):
        """The shape of a shard."""
        return _shard_shape(self.shape, self.axes, self.sizes)

    @property
    def layers_spec(self):
        """The partition spec of a vector with a value for every layer of a stack."""
        return _spec(self.axes[:1])

    def scales_spec(self, shape):
        """The partition spec of its scales, which have this shape."""
        if len(shape) == len(self.shape) and shape[:-1] == self.shape[:-1]:
            # In rows; or one for all of a tensor with one axis, which cannot be divided.
            return self.spec if shape != (1,) else PartitionSpec()
        return self.layers_spec if shape != (1,) else PartitionSpec()

    def place(self):
        """The `Place` of this device's shard, where mesh axes have a number; None for all of it."""
        if not self.names:
            return None
        offsets = tuple(
            lax.axis_index(names).astype(jnp.uint32) * jnp.uint32(length) if names else None
            for names, length in zip(self.axes, self.shard_shape, strict=True)
        )
        return Place(self.shape, self.shard_shape, offsets)


def scales_sharding(sharding, shape, scales_shape, block_size):
    """The `NamedSharding` of the scales of a leaf that has this one."""
    axes, sizes = axes_of(sharding.spec, len(shape)), dict(sharding.mesh.shape)
    spec = split_for(shape, [axes], sizes, block_size).scales_spec(scales_shape)
    return NamedSharding(sharding.mesh, spec)


def axes_of(spec, ndim):
    """For every axis of an array, the mesh axes that a partition spec names."""
    entries = (*spec, *(None,) * (ndim - len(spec)))
    return tuple(() if x is None else (x,) if isinstance(x, str) else tuple(x) for x in entries)


def split_for(shape, candidates, sizes, block_size):
    """The `Split` of a leaf that goes by the most divided of its arrays.

    Args:
      shape: Of the leaf.
      candidates: For state, gradient and parameter, `axes_of` them.
      sizes: Devices along every mesh axis.
      block_size: Elements that share a scale, or None if none do, or all.
    """
    asked = max(candidates, key=lambda axes: _devices(axes, sizes))  # of equals the first
    return Split(shape, _fitting(shape, asked, sizes, block_size), sizes, asked)


def fits(shape, axes, sizes, block_size):
    """Whether a leaf divided over these axes has whole blocks in every shard."""
    return _fitting(shape, axes, sizes, block_size) == axes


def _fitting(shape, axes, sizes, block_size):
    """The axes without those, of the innermost first, that would cut blocks."""
    if not _devices(axes, sizes) > 1:
        return axes
    kept = list(axes)
    flat = block_size is not None and shape[-1] % block_size != 0
    if flat:
        kept[1:] = [()] * (len(kept) - 1)
    for i in range(len(kept)):
        while kept[i] and (
            shape[i] % _devices(kept[i : i + 1], sizes)
            or not keeps_blocks(
                shape,
                _shard_shape(shape, [k if j == i else () for j, k in enumerate(kept)], sizes),
                block_size,
            )
        ):
            kept[i] = kept[i][:-1]
    return tuple(kept)


def _devices(axes, sizes):
    return math.prod(sizes[name] for names in axes for name in names)


def _shard_shape(shape, axes, sizes):
    return tuple(-(-n // _devices([names], sizes)) for n, names in zip(shape, axes, strict=True))


def _spec(axes):
    entries = [None if not names else names[0] if len(names) == 1 else names for names in axes]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _fitting_block_size(shape, axes, sizes, block_size):
    """The largest block size below this one of which shards have whole blocks, or None."""
    sizes_below = [b for b in BLOCK_SIZES if b < block_size]
    return next((b for b in reversed(sizes_below) if fits(shape, axes, sizes, b)), None)


def warn_of_cuts(leaves):
    """Warns once of all leaves whose shards would cut blocks.

    Args:
      leaves: `(name, split, block size)` for every leaf.
    """
    cut = [
        (name, split, block)
        for name, split, block in leaves
        if block is not None and split.axes != split.asked
    ]
    if not cut:
        return
    sizes = " or ".join(map(str, sorted({block for *_, block in cut})))
    lines = []
    for name, split, block in cut[:5]:
        better = _fitting_block_size(split.shape, split.asked, split.sizes, block)
        remedy = (
            f"`StateOptions(block_size={better})` fits"
            if better
            else "no block size fits; `StateOptions(keep_32bit=...)` keeps it in 32 bits"
        )
        shard = "x".join(map(str, _shard_shape(split.shape, split.asked, split.sizes)))
        whole = "x".join(map(str, split.shape))
        lines.append(f"  {name!r} ({whole}, in shards of {shard}): {remedy}.")
    if len(cut) > 5:
        lines.append(f"  and {len(cut) - 5} more")
    warnings.warn(
        f"Shards cut the blocks of {sizes} elements that share a scale. So in every step these "
        "leaves are gathered on all devices, which is slow and takes memory:\n" + "\n".join(lines),
        stacklevel=1,  # one place for all callers, so that Python shows it once for the same leaves
    )
