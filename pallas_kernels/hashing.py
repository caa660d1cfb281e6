"""Random numbers for rounding: a hash of a key and an element's place, nothing stored.

The number that an element gets depends on the key and on its index in the flattened tensor alone.
So it is the same whatever the tensor's shape, the block size, the sharding and the implementation.
"""

import math

import jax
import jax.numpy as jnp

_GROUP = 256
"""Indices are kept as (index // 256, index % 256), to hold more than 32 bits."""


def mix(x):
    """A 32-bit integer hash in which every input bit moves every output bit (lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def uniform(key, shape):
    """Uniform float32 numbers in [1, 2), one per element, from a uint32 key.

    Element `i` of the flattened tensor gets half of a hash of `key` and `i // 2`: the same in every
    shape, on every mesh and in every implementation.
    """
    group, lane = _flat_index(shape)
    index = group * jnp.uint32(_GROUP) + lane
    return uniform_at(key, index, group >> 24 if math.prod(shape) > 2**32 else None)


def uniform_at(key, index, high=None):
    """The number of the element with this index (uint32, of which `high` is what is beyond)."""
    if high is not None:
        key = key ^ mix(high * jnp.uint32(0x9E3779B9))
    # Eight elements share a hash, from which each two get a number of their own, of 16 bits each: the
    # rounding error of a gap by 2**-17 of it is below that of float32.
    pair = (index >> 1) & 3
    multiplier = jnp.where(
        pair < 2,
        jnp.where(pair == 0, jnp.uint32(_MULTIPLIERS[0]), jnp.uint32(_MULTIPLIERS[1])),
        jnp.where(pair == 2, jnp.uint32(_MULTIPLIERS[2]), jnp.uint32(_MULTIPLIERS[3])),
    )
    number = mix((index >> 3) ^ key) * multiplier
    number = number ^ (number >> 16)
    # The 16 bits become the top of the mantissa of a number in [1, 2), with half a unit added so that
    # the mean is 3/2. What stands below the upper half is left there.
    mantissa = jnp.where(index & 1 == 0, (number & 0xFFFF) << 7, number >> 9)
    return (mantissa | 0x3F800040).view(jnp.float32)


_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def _flat_index(shape):
    """Each element's index in the flattened tensor as (index // 256, index % 256), in uint32.

    Written so that no intermediate exceeds 32 bits, whatever the tensor's size.
    """
    if not shape:
        return jnp.uint32(0), jnp.uint32(0)
    *lead, last = shape

    def axis(i):
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
