"""Random numbers for every element: a hash of a key and the element's index, nothing stored."""

import math

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic.shards import keeps_blocks

_GROUP = 256
"""Indices are kept as (index // 256, index % 256), to hold more than 32 bits."""


def mix(x):
    """A 32-bit integer hash in which every input bit moves every output bit (lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def uniform(key, shape):
    """Uniform float32 numbers strictly between 0 and 1, one per element, from a uint32 key.

    Element `i` of the flattened tensor gets what a hash makes of `key` and `i`: the same in every
    shape and in every implementation.
    """
    return uniform_at(key, *index_in(shape))


def uniform_at(key, index, high=None):
    """The number of the element with this index (uint32, of which `high` is what is beyond)."""
    # The upper 16 bits and half a unit become the mantissa. So the mean is 1/2, and the ends are
    # further away than the rounding errors that would move a value from the level that it lies on.
    number = bits_at(key, index, high)
    return ((number >> 9) & 0x007FFF80 | 0x3F800040).view(jnp.float32) - 1


def bits_at(key, index, high=None):
    """uint32 numbers whose upper 16 bits are random, for the elements with these indices."""
    if high is not None:
        key = key ^ mix(high * jnp.uint32(0x9E3779B9))
    # Eight elements share a hash and go on from it as a multiplicative generator does, each by a
    # power of the multiplier.
    number = mix((index >> 3) ^ key)
    for bit in range(3):
        power = jnp.uint32(pow(_MULTIPLIER, 2**bit, 2**32))
        number = number * jnp.where(index & 2**bit == 0, jnp.uint32(1), power)
    return number


_MULTIPLIER = 0x93D765DD


def index_in(shape, place=None, piece=None):
    """Each element's index in its flattened tensor modulo 2**32, and what is beyond or None.

    Args:
      shape: That of the elements: of a tensor, of the shard that a `Place` is of, or of the view of
        a `Piece`.
      place: Where in its tensor the shard lies; None of a whole tensor.
      piece: Where in its leaf the piece lies; None of a whole leaf.
    """
    group, lane = _flat_index(shape, place if piece is None else None)
    size = math.prod(shape) if piece is None else piece.leaf_size
    if piece is not None:
        group = group + piece.first_block_of(_GROUP)
    if place is not None:
        size = math.prod(place.shape)
        if piece is not None:
            return _of_blocks(group, lane, place, size)
    return _joined(group, lane, _GROUP, size)


def _of_blocks(group, lane, place, size):
    """The index of an element of a shard, by the largest blocks that the shard consists of."""
    sizes = (2**i for i in range(_GROUP.bit_length() - 1, -1, -1))
    block = next(x for x in sizes if keeps_blocks(place.shape, place.shard_shape, x))
    number = group * jnp.uint32(_GROUP // block) + lane // jnp.uint32(block)
    return _joined(place.block(number, block), lane % jnp.uint32(block), block, size)


def _joined(number, rest, block, size):
    """`number * block + rest` of a tensor of so many elements, modulo 2**32, and what is beyond."""
    index = number * jnp.uint32(block) + rest
    if size <= 2**32:
        return index, None
    return index, number >> jnp.uint32(32 - (block.bit_length() - 1))


def _flat_index(shape, place):
    """Each element's index in the flattened tensor as (index // 256, index % 256), in uint32.

    Written so that no intermediate exceeds 32 bits, whatever the tensor's size.
    """
    if not shape:
        return jnp.uint32(0), jnp.uint32(0)
    whole_shape = shape if place is None else place.shape
    offsets = (None,) * len(shape) if place is None else place.offsets

    def along(axis):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        return index if offsets[axis] is None else index + offsets[axis]

    row = jnp.zeros(shape, jnp.uint32)
    for axis, n in enumerate(whole_shape[:-1]):
        row = row * jnp.uint32(n) + along(axis)
    column = along(len(shape) - 1)
    whole, rest = divmod(whole_shape[-1], _GROUP)
    # index = row * last + column, with last = whole * 256 + rest and row = 256 * (row // 256) + ...
    block = row * jnp.uint32(whole)
    if rest:
        block = block + (row >> 8) * jnp.uint32(rest)
        column = column + (row & 255) * jnp.uint32(rest)
    return block + (column >> 8), column & 255
