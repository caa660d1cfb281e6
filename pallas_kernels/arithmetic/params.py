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
"""The bits of the NaN with the smallest positive ones: adding to others could overflow."""


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
    p = x.astype(dtype)
    rounded = p.astype(jnp.float32)
    per_unit = ((254 << 23) - _unit(rounded)).view(jnp.float32)
    residual = round_to((x - rounded) * per_unit + _centred(bits >> 24, 8))
    residual = jnp.where(jnp.abs(residual) <= 129, residual, 0)  # nothing of infinity and NaN
    # Not -128: half a unit below an odd number, the nearest one would be another.
    residual = jnp.maximum(jnp.minimum(residual, 127), -127)
    return p, residual.astype(jnp.int32).astype(jnp.int8)


def joined(p, residual):
    """The float32 parameter that `p` and its residual stand for."""
    x, residual = p.astype(jnp.float32), residual.astype(jnp.int32)
    if p.dtype == jnp.bfloat16:
        # Zero is zero, whatever its residual: somebody may have pruned a parameter.
        return jnp.where(x == 0, x, (x.view(jnp.int32) + (residual << 8)).view(jnp.float32))
    return x + residual.astype(jnp.float32) * _unit(x).view(jnp.float32)


def _bits(x):
    """The bits of float32 numbers as int32, of which the upper half can still be rounded up."""
    return jnp.minimum(x.astype(jnp.float32).view(jnp.int32), _NAN)


def _upper_half(bits):
    # Of which a GPU packs two by one instruction, where a conversion would take three.
    return (bits >> 16).astype(jnp.int16).view(jnp.bfloat16)


def _unit(x):
    """What a residual of 1 stands for beside a float16 number, as the bits of a float32 one."""
    return jnp.maximum(x.view(jnp.int32) & 0x7F800000, (127 - 14) << 23) - (18 << 23)


def _centred(numbers, bits):
    """Numbers below 2**bits as evenly spread float32 ones between -1/2 and 1/2."""
    centred = numbers.astype(jnp.int32).astype(jnp.float32) + (0.5 - 2.0 ** (bits - 1))
    return centred * 2.0**-bits
