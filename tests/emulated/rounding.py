"""Correctly rounded float arithmetic that NumPy lacks. Arrays of float32 unless it says
otherwise."""

import numpy as np

NAN = np.uint32(0x7FFFFFFF)
"""The bits of every NaN that an instruction makes."""
_SMALLEST_NORMAL = 2.0**-126


def fma(a, b, c):
    """`a * b + c`, rounded once."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact
    return _sum_to_odd(product, c.astype(np.float64)).astype(np.float32)


def _sum_to_odd(a, b):
    """`a + b` in float64, or the odd one of its two neighbours: rounding it again is then right."""
    total = np.asarray(a + b)
    part = total - a
    error = (a - (total - part)) + (b - part)  # exact (Knuth)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    outwards = (error > 0) == (total > 0)
    return (bits + np.where(inexact, np.where(outwards, 1, -1), 0)).view(np.float64)


def canonical(x):
    """The same, with the one NaN that NVIDIA's instructions make."""
    bits = np.where(np.isnan(x), NAN, x.view(np.uint32))
    return bits.view(np.float32)


def flushed(x):
    """The same, with zeros of their sign for subnormal numbers."""
    return np.where(np.abs(x) < _SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def to_bfloat16(x):
    """The bits of the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32)
    up = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    nearest = (bits + up >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), nearest)


def from_bfloat16(bits):
    """The number that a bfloat16 is."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_float16(x):
    """The bits of the nearest float16, ties to even."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def from_float16(bits):
    """The number that a float16 is."""
    return bits.view(np.float16).astype(np.float32)


WIDENED = {"bf16": from_bfloat16, "f16": from_float16}
"""Numbers of 16 bits as float32, by their type in PTX."""
