"""Parameters of 16 bits: how a step that is smaller than half a unit of theirs is not lost.

A step is computed in float32. Written to the nearest number of 16 bits, a parameter stays where it
is if the step is less than half the distance to its neighbour. There are two ways around it:

- *Stochastic*: up or down at random, up with a probability that is the part of the way. The mean of
  many is exact, and nothing is stored.
- *Compensated*: the nearest number, and beside it a residual of a byte: how far the parameter is
  from that number, in 256ths of a unit of its last place. What is smaller is rounded with a dither,
  as stored moments are.

bfloat16 is the upper half of float32, so for it all of that is arithmetic on bits: a residual
counts 256ths in the bits of the magnitude, away from zero where it is positive. For float16 it
counts them in the value, where numbers below the smallest normal one have that one's unit.
"""

import jax.numpy as jnp

from pallas_kernels.arithmetic.ladders import round_to

ROUNDINGS = ("nearest", "stochastic", "compensated")

_NAN = 0x7FC00000
"""The bits of a NaN: adding to those of one with more of them could make a number of it."""


def is_16bit(dtype) -> bool:
    """Whether a dtype is one of those."""
    return dtype in (jnp.bfloat16, jnp.float16)


def stochastic(x, dtype, bits):
    """`x` in a dtype of 16 bits, rounded up or down at random in magnitude, which is unbiased.

    Args:
      x: Float32.
      dtype: bfloat16 or float16.
      bits: Random uint32 numbers in the shape of `x`, of which the upper 16 bits are used.
    """
    if dtype == jnp.bfloat16:
        return _upper_half(_bits(x) + (bits >> 16).astype(jnp.int32))
    # Of a normal number, 13 bits are dropped. Below, units are counted.
    kept = (_bits(x) + (bits >> 19).astype(jnp.int32)) & ~0x1FFF
    units = round_to(x * 2.0**24 + _centred(bits >> 19, 13)) * 2.0**-24
    return jnp.where(jnp.abs(x) < 2.0**-14, units, kept.view(jnp.float32)).astype(dtype)


def compensated(x, dtype, bits):
    """`x` as `(p, residual)`: in a dtype of 16 bits, and what is missing, int8.

    Args:
      x: Float32.
      dtype: bfloat16 or float16.
      bits: uint32 numbers, of which the upper 8 bits say where between two values of the residual
        is rounded up.
    """
    if dtype == jnp.bfloat16:
        # The residual is between -128 and 127 if 128 is added to it before the upper half is taken.
        sums = _bits(x) + ((bits >> 24).astype(jnp.int32) | 0x8000)
        return _upper_half(sums), ((sums >> 8) ^ 0x80).astype(jnp.int8)
    # By arithmetic: XLA may leave out a conversion to 16 bits and back, which it thinks does harm.
    gap = 256 * _unit(x)
    nearest = round_to(x * _per_unit(x) * (1 / 256)) * gap
    nearest = jnp.where(jnp.abs(x) < jnp.inf, nearest, x)
    unit = _unit(nearest)
    missing = round_to((x - nearest) * _per_unit(nearest) + _centred(bits >> 24, 8)) * unit
    # What is half way to the next number goes up. (A residual of 128 is more than a byte holds, and
    # cut off at 127, a parameter would never get further in small steps.)
    p = nearest + jnp.where(missing < 0.5 * gap, 0, gap)
    residual = (nearest + missing - p) * _per_unit(p)
    residual = jnp.where(jnp.abs(residual) <= 128, residual, 0)  # nothing of infinity and NaN
    return p.astype(dtype), residual.astype(jnp.int32).astype(jnp.int8)


def joined(p, residual):
    """The float32 parameter that `p` and its residual stand for."""
    x, residual = p.astype(jnp.float32), residual.astype(jnp.int32)
    if p.dtype == jnp.bfloat16:
        # Zero is zero, whatever its residual: somebody may have pruned a parameter.
        return jnp.where(x == 0, x, (x.view(jnp.int32) + (residual << 8)).view(jnp.float32))
    return x + residual.astype(jnp.float32) * _unit(x)


def _bits(x):
    """The bits of float32 numbers as int32, of which the upper half can still be rounded up."""
    # Of NaN, to which nothing can be added: a GPU makes the one with all bits. Those that a CPU
    # makes have few bits, and those of a parameter end in zeros.
    return jnp.minimum(x.astype(jnp.float32).view(jnp.int32), _NAN)


def _upper_half(bits):
    # Of which a GPU packs two by one instruction, where a conversion would take three.
    return (bits >> 16).astype(jnp.int16).view(jnp.bfloat16)


def _unit(x):
    """What a residual of 1 stands for beside a float16 number."""
    return _unit_bits(x).view(jnp.float32)


def _per_unit(x):
    """Its inverse."""
    return ((254 << 23) - _unit_bits(x)).view(jnp.float32)


def _unit_bits(x):
    return jnp.maximum(x.view(jnp.int32) & 0x7F800000, (127 - 14) << 23) - (18 << 23)


def _centred(numbers, bits):
    """Numbers below 2**bits as evenly spread float32 ones between -1/2 and 1/2."""
    centred = numbers.astype(jnp.int32).astype(jnp.float32) + (0.5 - 2.0 ** (bits - 1))
    return centred * 2.0**-bits
