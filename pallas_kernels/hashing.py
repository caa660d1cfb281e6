"""Random numbers for rounding: a hash of a key and an element's place, nothing stored.

The number that an element gets depends on the key and on its index in the flattened tensor alone.
So it is the same whatever the tensor's shape, the block size, the sharding and the implementation.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.places import Place

_GROUP = 256
"""Indices are kept as (index // 256, index % 256), to hold more than 32 bits."""


def mix(x):
    """A 32-bit integer hash in which every input bit moves every output bit (lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Key(NamedTuple):
    """The key of a leaf and step in its parts, which a kernel can put together by itself."""

    step: Any
    """uint32 scalar, as is `leaf`."""
    leaf: Any
    place: Place | None = None
    """Where the shard of the leaf lies that is stepped, if it is one."""


def whole_key(key):
    """The key of a leaf and step as one number; it may be one already."""
    return key.step ^ key.leaf if isinstance(key, Key) else key


def place_of(key) -> Place | None:
    """The place of the shard that is stepped, or None."""
    return key.place if isinstance(key, Key) else None


def uniform(key, shape, first=None, place: Place | None = None):
    """Uniform float32 numbers between 1 and 2, one per element, from a uint32 key.

    Element `i` of the flattened tensor gets what a hash makes of `key` and `i`: the same in every
    shape, on every mesh and in every implementation.

    Args:
      key: uint32 scalar.
      shape: Of the tensor, or of a piece of it.
      first: For a piece of a tensor, `(group, size)`: it begins at element `group * 256`, with a
        uint32 `group`, of a tensor of that size.
      place: For a shard, where it lies in its tensor. A piece of a shard is in rows of blocks.
    """
    size = math.prod(shape)
    if place is None or first is None:
        group, lane = _flat_index(shape, place)
        if first is not None:
            group, size = group + first[0], first[1]
    else:
        group, lane = _index_in_rows(shape, first[0], place)
    if place is not None:
        size = math.prod(place.shape)
    index = group * jnp.uint32(_GROUP) + lane
    return uniform_at(key, index, group >> 24 if size > 2**32 else None)


def uniform_at(key, index, high=None):
    """The number of the element with this index (uint32, of which `high` is what is beyond)."""
    if high is not None:
        key = key ^ mix(high * jnp.uint32(0x9E3779B9))
    # Eight elements share a hash and go on from it as a multiplicative generator does, each by a
    # power of the multiplier. The upper 16 bits and half a unit become the mantissa. So the mean is
    # 3/2, and the ends are further away than the rounding errors that would move a value from the
    # level that it lies on.
    number = mix((index >> 3) ^ key)
    for bit in range(3):
        power = jnp.uint32(pow(_MULTIPLIER, 2**bit, 2**32))
        number = number * jnp.where(index & 2**bit == 0, jnp.uint32(1), power)
    return ((number >> 9) & 0x007FFF80 | 0x3F800040).view(jnp.float32)


_MULTIPLIER = 0x93D765DD


def _flat_index(shape, place=None):
    """Each element's index in the flattened tensor as (index // 256, index % 256), in uint32.

    Written so that no intermediate exceeds 32 bits, whatever the tensor's size.
    """
    if not shape:
        return jnp.uint32(0), jnp.uint32(0)
    *lead, last = shape if place is None else place.shape

    def axis(i):
        if place is not None:
            return place.indices(shape, i)
        return jax.lax.broadcasted_iota(jnp.uint32, shape, i)

    row = jnp.zeros(shape, jnp.uint32)
    for i, n in enumerate(lead):
        row = row * jnp.uint32(n) + axis(i)
    whole, rest = divmod(last, _GROUP)
    # index = row * last + column, with last = whole * 256 + rest and row = 256 * (row // 256) + ...
    block, lane = row * jnp.uint32(whole), axis(len(lead))
    if rest:
        block = block + (row >> 8) * jnp.uint32(rest)
        lane = lane + (row & 255) * jnp.uint32(rest)
    return block + (lane >> 8), lane & 255


def _index_in_rows(shape, group, place):
    """The same for rows of blocks from a shard; the first begins at its element `group * 256`."""
    rows, block = shape
    many = max(_GROUP // block, 1)  # blocks in a group
    first = group * jnp.uint32(many) if block < _GROUP else group // jnp.uint32(block // _GROUP)
    row = first + jax.lax.broadcasted_iota(jnp.uint32, (rows, 1), 0)
    row = jnp.broadcast_to(place.block(row, block), shape)
    lane = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    if block < _GROUP:
        return row // jnp.uint32(many), row % jnp.uint32(many) * jnp.uint32(block) + lane
    return row * jnp.uint32(block // _GROUP) + (lane >> 8), lane & 255
