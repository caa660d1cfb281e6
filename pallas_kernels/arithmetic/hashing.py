"""Random numbers for every element: a hash of a key and the element's index, nothing stored."""

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
    """Uniform float32 numbers strictly between 0 and 1, one per element, from a uint32 key.

    Element `i` of the flattened tensor gets what a hash makes of `key` and `i`: the same in every
    shape and in every implementation.
    """
    group, lane = _flat_index(shape)
    index = group * jnp.uint32(_GROUP) + lane
    return uniform_at(key, index, group >> 24 if math.prod(shape) > 2**32 else None)


def uniform_at(key, index, high=None):
    """The number of the element with this index (uint32, of which `high` is what is beyond)."""
    if high is not None:
        key = key ^ mix(high * jnp.uint32(0x9E3779B9))
    # Eight elements share a hash and go on from it as a multiplicative generator does, each by a
    # power of the multiplier. The upper 16 bits and half a unit become the mantissa. So the mean is
    # 1/2, and the ends are further away than the rounding errors that would move a value from the
    # level that it lies on.
    number = mix((index >> 3) ^ key)
    for bit in range(3):
        power = jnp.uint32(pow(_MULTIPLIER, 2**bit, 2**32))
        number = number * jnp.where(index & 2**bit == 0, jnp.uint32(1), power)
    return ((number >> 9) & 0x007FFF80 | 0x3F800040).view(jnp.float32) - 1


_MULTIPLIER = 0x93D765DD


def _flat_index(shape):
    """Each element's index in the flattened tensor as (index // 256, index % 256), in uint32.

    Written so that no intermediate exceeds 32 bits, whatever the tensor's size.
    """
    if not shape:
        return jnp.uint32(0), jnp.uint32(0)
    *lead, last = shape
    row = jnp.zeros(shape, jnp.uint32)
    for i, n in enumerate(lead):
        row = row * jnp.uint32(n) + jax.lax.broadcasted_iota(jnp.uint32, shape, i)
    whole, rest = divmod(last, _GROUP)
    # index = row * last + column, with last = whole * 256 + rest and row = 256 * (row // 256) + ...
    block = row * jnp.uint32(whole)
    lane = jax.lax.broadcasted_iota(jnp.uint32, shape, len(lead))
    if rest:
        block = block + (row >> 8) * jnp.uint32(rest)
        lane = lane + (row & 255) * jnp.uint32(rest)
    return block + (lane >> 8), lane & 255
