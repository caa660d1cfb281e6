"""The ladders of levels behind the codecs: powers, and bitsandbytes' dynamic map.

A ladder is a row of magnitudes, from 0 on rung 0 to exactly 1 on rung `top`. `level(rung)` says how
high a rung is. Two functions lead back, from a magnitude `x` and what `scale(absmax)` says of its
block. `nearest(x, scale)` is a number that rounds to the rung nearest to `x / absmax`; the rounding
costs nothing, as making a byte of it rounds anyway. `bracket(y)` is the rung at or below
`y = x / absmax` with the levels around `y`, as stochastic rounding wants it.

Only `jax.numpy` operations that also exist inside GPU kernels are used: no tables, no `floor`, no
`cbrt`. There, one instruction per element more is three percent of a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp


class Level(NamedTuple):
    """How high a rung is, and the square root of that."""

    height: Any
    root: Any


class Codec(NamedTuple):
    """A map between 256 codes and the values in [-1, 1] (signed) or [0, 1] (unsigned).

    Rungs are whole numbers in float32, which spares the conversions to and from integers.

    - `level` is strictly increasing on `0..top`; `level(0) == 0` and `level(top) == 1` exactly.
    - `scale(absmax)` is what `nearest` wants to know of a block, computed once for the block: here
      1 / absmax, or 0 for a block of zeros.
    - `nearest(x, scale)`, for `x` from 0 to absmax, is less than 1/2 from the rung whose level is
      nearest to `x / absmax`.
    - `bracket(y)`, for `y` from 0 to a rounding error above 1, is `(rung, low, high)`: the last
      rung whose level is not above `y`, but for a rounding error, its `Level`, and that of the
      next. (A ladder for kernels may have another `top_level` than 1; its `scale` makes up for it.)
    - `raw(rung) * unit` is `level(rung)` and `raw_root(rung) * sqrt(unit)` its square root, but for
      rounding errors: cheaper where `unit` can be made part of a block's scale.
    - A value on a rung has the code `zero_code + rung`, or `zero_code - rung` if it is negative; on
      the negative side a ladder ends at code 0, where it may lack its top.
    """

    name: str
    signed: bool
    zero_code: int
    """The code whose value is exactly 0; fresh state is filled with it."""
    top: int
    """The rung of magnitude 1."""
    negative_never_zero: bool
    """Negative values are never stored as zero (the sign rule of bitsandbytes' signed map)."""
    odd: bool
    """`level(-rung)` is `-level(rung)` and not `level(rung)`."""
    level: Callable
    raw: Callable
    raw_root: Callable
    unit: float
    scale: Callable
    nearest: Callable
    bracket: Callable
    quantum: float = 1.0
    """What `nearest` and `bracket` count rungs in: a power of two."""
    top_level: float = 1.0
    """What `bracket` calls the level of the top rung."""


def inverse(absmax):
    """1 / absmax, and 0 for a block of zeros (or of numbers too small for float32)."""
    return jnp.where(absmax >= TINY, 1 / absmax, 0)


def _float32(x):
    return x.astype(jnp.float32)


TINY = 2.0**-126
_ROUND = 1.5 * 2.0**23


def round_to(x, quantum=1.0):
    """The multiple of `quantum`, a power of two, nearest to `x`, for less than 2**22 of them."""
    # Float32 numbers of this size are multiples. Two additions cost a GPU less than `jnp.round`,
    # and the absolute value of a positive number costs nothing. Without it, the XLA of jax 0.11.2
    # would add up the two constants.
    return jnp.abs(x + _ROUND * quantum) - _ROUND * quantum


def floor_to(x, quantum=1.0):
    """The multiple of `quantum` below `x >= 0`, or either neighbour of an `x` that is one."""
    # The absolute value changes no result, and keeps the constants apart (see `round_to`).
    return round_to(jnp.abs(x - quantum / 2), quantum)


def _nearest_by_levels(bracket):
    """`nearest` for any ladder, from `bracket`."""

    def nearest(x, scale):
        y = _float32(x * scale)
        rung, low, high = bracket(y)
        return jnp.where(y > 0.5 * (low.height + high.height), rung + 1, rung)

    return nearest


# --------------------------------------------------------------------------------------- power


def _cube_root(y):
    """The cube root of `y >= 0`, 0.04 to 0.36 % too large, without a division.

    That it errs to one side, and by less than half a rung in 127, is what `_nearest_cube` needs.
    Exponent arithmetic on the bits gives the inverse root to 3.5 %, one Newton step the rest; its
    constants are fitted, as Newton's own would leave an error to the other side.
    """
    # In the mantissa of 2**23 + x stands x, here the exponent arithmetic's result in units of 2**8.
    bits = y.view(jnp.int32).astype(jnp.float32) * (2.0**-8 / 3)
    r = ((2.0**23 + _CBRT_MAGIC * 2.0**-8 - bits).view(jnp.int32) << 8).view(jnp.float32)
    r = r * (_CBRT_A - _CBRT_B * (((y * r) * r) * r))  # this order keeps y = 0 finite
    return (y * r) * r * 1.002


_CBRT_MAGIC = 0x548E0000
_CBRT_A, _CBRT_B = 1.48580509, 0.51277594

_ROOTS = {
    1: lambda y: y,
    2: jnp.sqrt,
    3: _cube_root,
    4: lambda y: jnp.sqrt(jnp.sqrt(y)),
    8: lambda y: jnp.sqrt(jnp.sqrt(jnp.sqrt(y))),
}


def power(signed, exponent, name="power", root=None):
    """The codec with levels `(rung / n) ** exponent`, n = 127 signed and 255 unsigned.

    `root` overrides how the root of that exponent is taken: it may be up to 0.39 % too large for
    exponent 3, and is off by rounding errors only for the others.
    """
    top = 127 if signed else 255
    root = root or _ROOTS[exponent]

    def level(rung):
        # rung * (1 / top) is exactly 1 at the top for 127 and 255, in float32.
        return _power(rung * (1 / top), exponent)

    def bracket(y):
        y = jnp.minimum(y, 1) if exponent == 1 else y  # its gaps do not hold a rounding error
        rung = floor_to(top * root(y))
        if exponent == 3:  # whose root may be too large
            rung = jnp.where(y < level(rung), rung - 1, rung)
        step = 1 / top
        return rung, power_level(rung * step, exponent), power_level((rung + 1) * step, exponent)

    nearest = {
        1: lambda x, scale: jnp.minimum(top * _float32(x * scale), top),
        3: lambda x, scale: _nearest_cube(_float32(x * scale), root, top),
    }.get(exponent, _nearest_by_levels(bracket))
    half = exponent // 2
    return Codec(
        name=name,
        signed=signed,
        zero_code=128 if signed else 0,
        top=top,
        negative_never_zero=False,
        odd=exponent % 2 == 1,
        level=level,
        raw=lambda rung: _power(rung, exponent),
        raw_root=lambda rung: (
            jnp.sqrt(_power(rung, exponent)) if exponent % 2 else _power(rung, half)
        ),
        unit=float(top) ** -exponent,
        scale=inverse,
        nearest=nearest,
        bracket=bracket,
    )


def _power(x, exponent):
    return x if exponent == 1 else x**exponent


def power_level(x, exponent):
    """The `Level` of height `x ** exponent`."""
    if exponent % 2:
        height = _power(x, exponent)
        return Level(height, jnp.sqrt(height))
    root = _power(x, exponent // 2)
    return Level(root * root, root)


def _nearest_cube(y, root, top):
    """The rung of the cube nearest to `y`."""
    # Rounding the root names the nearest rung or the one above it, because the middle between two
    # cubes lies above the cube of the middle. That middle, ((r - 1)**3 + r**3) / 2, decides.
    unit = 1 / top**3
    rung = round_to(top * root(y))
    middle = ((unit * rung - 1.5 * unit) * rung + 1.5 * unit) * rung - 0.5 * unit
    return jnp.where(y <= middle, rung - 1, rung)


# ------------------------------------------------------------------------------------- dynamic


def dynamic(signed, five_to=None, five_to_7_minus=None):
    """Bitsandbytes' dynamic map in closed form.

    Seven decades; decade i holds N equally spaced levels, N = 2**i signed and 2**(i+1) unsigned:
    `10**(i-6) * (0.1 + 0.9 * (j + 0.5) / N)`. Counting rungs so that `a = N + j` turns decade and
    place in the decade into exponent and mantissa of `a`. Signed, +1 has a code and -1 has none.

    `five_to(2**i)` and `five_to_7_minus(2**23 + i)` override how `5**i`, which must be exact, and
    `5**(7 - i)` are found for i from 0 to 7; `five_to(0)` is 0.
    """
    five_to = five_to or _five_to
    five_to_7_minus = five_to_7_minus or _five_to_7_minus
    shift = 0 if signed else 1  # a = rung + shift
    top = 128 if signed else 255
    most = 64.0 if signed else 128.0  # levels in the last decade

    def level(rung):
        a = rung if signed else rung + 1  # and the sign does not matter
        count = (a.view(jnp.int32) & 0x7F800000).view(jnp.float32)  # N, or 0
        # 10**i / N is a power of five, or half of it: the only rounding is that of 1e-6.
        inside = 0.9 * (jnp.abs(a) - count) + (0.1 * count + 0.45)
        value = inside * (five_to(count) * (1e-6 if signed else 0.1e-6))
        value = jnp.where(jnp.abs(rung) >= top, 1.0, value)
        return value if signed else jnp.where(rung == 0, 0.0, value)

    def place(y):
        """N of the decade of `y`, and how many of the N parts of the decade lie below `y`."""
        # A little more than the logarithm, so that no rounding error puts the start of a decade
        # into the decade below. It may put the end of one into the decade above; place is then
        # -3e-5, and what follows treats that as the start.
        decade = jnp.log2(jnp.maximum(y, 3.2e-7)) * _LOG10_2 + (6.5 + 2e-6)
        decade = jnp.minimum(decade, 6.4) + 2.0**23  # rounded, 2**23 + i
        count = ((decade.view(jnp.int32) << 23) + ((127 + shift) << 23)).view(jnp.float32)
        # 10**(6 - i) * N is 5**(6 - i) * most.
        scaled = y * (five_to_7_minus(decade) * (most / 0.9 / 5))
        return count, scaled - count * (1 / 9)

    def nearest(x, scale):
        y = _float32(x * scale)
        count, parts = place(y)
        # Levels are the middles of the parts. Below the first one of a decade the spacing changes,
        # and so does the height at which the level below is as near.
        turn = jnp.where(count == 2.0**shift, 7 / 36 if signed else 5 / 36, 0.2)
        j = jnp.where(parts < turn, -1.0, floor_to(parts))
        return jnp.where(y > 1 - 0.225 / most, top, count + j - shift)

    def bracket(y):
        y = jnp.minimum(y, 1)
        count, parts = place(y)
        rung = jnp.where(y >= 1, top, count + (round_to(parts) - (1 + shift)))
        levels = level(rung), level(rung + 1)
        return rung, *(Level(height, jnp.sqrt(height)) for height in levels)

    return Codec(
        name="dynamic",
        signed=signed,
        zero_code=127 if signed else 0,
        top=top,
        negative_never_zero=signed,
        odd=False,
        level=level,
        raw=level,
        raw_root=lambda rung: jnp.sqrt(level(rung)),
        unit=1.0,
        scale=inverse,
        nearest=nearest,
        bracket=bracket,
    )


_LOG10_2 = 0.30102999566398120


def _five_to(count):
    power = _five_to_low_bits((count.view(jnp.int32) >> 23) + 1)  # an exponent is biased by 127
    return jnp.where(count == 0, 0, power)


def _five_to_7_minus(decade):
    return _five_to_low_bits(~decade.view(jnp.int32))


def _five_to_low_bits(n):
    value = jnp.where(n & 1 == 0, 1.0, 5.0)
    value = jnp.where(n & 2 == 0, value, value * 25.0)
    return jnp.where(n & 4 == 0, value, value * 625.0).astype(jnp.float32)
