"""Places: where a shard lies in its tensor.

A shard is stepped as a tensor of its own. It has to know where it lies for two things: blocks are
those of the whole tensor, so its edges must be edges of blocks (`keeps_blocks`); and how a block is
rounded goes by its number in the whole tensor, whoever rounds it (`Place`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def keeps_blocks(shape, shard_shape, block_size):
    """Whether shards of this shape consist of whole blocks of a tensor of that shape.

    Then blocks and scales of a shard, taken as a tensor of its own, are a shard of the tensor's.
    """
    if shape == shard_shape or block_size is None:
        return True
    if shape[-1] % block_size == 0:
        return shard_shape[-1] % block_size == 0
    # Blocks straddle rows: a shard has to be a stretch of the flattened tensor.
    return shard_shape[1:] == shape[1:] and math.prod(shard_shape) % block_size == 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    """Where a shard that `keeps_blocks` lies in its tensor; a pytree of its offsets."""

    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    """Of the tensor."""
    shard_shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    offsets: tuple[Any, ...]
    """Where the shard begins along every axis, uint32 scalars; None for 0."""

    def block(self, number, block_size):
        """The number in the tensor of the block that has this number in the shard (uint32)."""
        outermost, *inner = self._axes(block_size)
        position, stride = None, 1
        for length, whole, offset in reversed(inner):
            index = _moved(lax.rem(number, _like(number, length)), offset)
            index = index * _like(index, stride)
            position = index if position is None else position + index
            number, stride = lax.div(number, _like(number, length)), stride * whole
        index = _moved(number, outermost[2])
        return index if position is None else position + index * _like(index, stride)

    def _axes(self, block_size):
        """`(shard's length, tensor's length, offset)` for every axis of blocks, outermost first.

        They are as few as can be: an axis that is not divided is made one with that before it.
        """
        axes: list[tuple[int, int, Any]]
        if self.shape[-1] % block_size == 0:
            axes = list(zip(self.shard_shape, self.shape, self.offsets, strict=True))
            length, whole, offset = axes[-1]
            if offset is not None:
                offset = lax.div(offset, _like(offset, block_size))
            axes[-1] = length // block_size, whole // block_size, offset
        else:
            size, offset = math.prod(self.shard_shape), self.offsets[0]
            blocks = size // block_size
            if offset is not None:  # in shards, and then in blocks, as elements may be too many
                shards = lax.div(offset, _like(offset, self.shard_shape[0]))
                offset = shards * jnp.uint32(blocks)
            axes = [(blocks, -(-math.prod(self.shape) // block_size), offset)]
        merged = axes[:1]
        for length, whole, offset in axes[1:]:
            before = merged[-1]
            if length == whole and offset is None:
                begin = before[2]
                begin = None if begin is None else begin * jnp.uint32(whole)
                merged[-1] = before[0] * length, before[1] * whole, begin
            else:
                merged.append((length, whole, offset))
        return merged


def is_divided(x):
    """Whether a type says that XLA divides an array over devices, and shows it as a whole."""
    mesh = jax.typeof(x).sharding.mesh
    manual = jax.sharding.AxisType.Manual
    return mesh.size > 1 and any(kind != manual for kind in mesh.axis_types)


def _moved(index, offset):
    return index if offset is None else index + offset


def _like(x, value):
    return lax.full_like(x, value)
