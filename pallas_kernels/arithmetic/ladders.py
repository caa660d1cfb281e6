"""The ladders of levels behind the codecs: powers, and bitsandbytes' dynamic map.

A ladder is a row of magnitudes, from 0 on rung 0 to exactly 1 on rung `top`. `level(rung)` says how
high a rung is. The way back is in two steps, because much of it is the same for all elements of a
block: `prepare(absmax, u)` works that out, and `climb(x, *prepared)` names the rung for a magnitude
`x`. Between two levels it is the upper one where `x / absmax` lies above the share `u` of the gap:
`u = 1/2` rounds to the nearest level, an evenly spread `u` without bias.

Only `jax.numpy` operations that also exist inside GPU kernels are used: no tables, no `floor`, no
`cbrt`. There, one instruction per element more is three percent of a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

NEAREST = 0.5
"""The `u` that rounds to the nearest level."""


class Climbed(NamedTuple):
    """Where a magnitude is stored: its rung, and, if it is at hand, `raw_root` of the rung."""

    rung: Any
    root: Any = None


class Codec(NamedTuple):
    """A map between 256 codes and the values in [-1, 1] (signed) or [0, 1] (unsigned).

    Rungs are whole numbers in float32, which spares the conversions to and from integers. The code
    of a value is its rung, negative if the value is, as a byte (two's complement): byte 0 is zero.

    - `level` is strictly increasing on `0..top`; `level(0) == 0` and `level(top) == 1` exactly.
    - `prepare(absmax, u)` is a tuple of what `climb` wants to know of a block: arrays like
      `absmax`. `u` is an array of numbers between 0 and 1, or `NEAREST`.
    - `climb(x, least, *prepared)`, for `x` from 0 to absmax, is the `Climbed` of it: a number from
      0 to `top` (but for less than 1/2) that rounds to the rung for `x`. The rounding costs
      nothing, as making a byte of it rounds anyway. `least` is the lowest rung for `x`, 0 or 1.
    - `raw(rung) * unit` is `level(rung)` and `raw_root(rung) * sqrt(unit)` its square root, but for
      rounding errors: cheaper where `unit` can be made part of a block's scale.
    """

    name: str
    signed: bool
    top: int
    """The rung of magnitude 1. If it is 128, a signed ladder ends at rung -127 on the other side,
    and byte 128 is the top."""
    dithered: bool
    """Whether moments are rounded by `dither`, or else to the nearest level."""
    negative_never_zero: bool
    """Negative values are never stored as zero (the sign rule of bitsandbytes' signed map)."""
    odd: bool
    """`level(-rung)` is `-level(rung)` and not `level(rung)`."""
    level: Callable
    raw: Callable
    raw_root: Callable
    unit: float
    prepare: Callable
    climb: Callable


def inverse(absmax):
    """1 / absmax, and 0 for a block of zeros (or of numbers too small for float32)."""
    return jnp.where(absmax >= TINY, 1 / absmax, 0)


TINY = 2.0**-126
ROUND = 1.5 * 2.0**23
"""A number added to it ends with the number as a byte, in two's complement, and is rounded."""


def round_to(x):
    """The whole number nearest to `x`, for less than 2**22."""
    # Float32 numbers of this size are whole. Two additions cost a GPU less than `jnp.round`,
    # and the absolute value of a positive number costs nothing. Without it, the XLA of jax 0.11.2
    # would add up the two constants.
    return jnp.abs(x + ROUND) - ROUND


def floor_to(x):
    """The whole number below `x >= 0`, or either neighbour of an `x` that is one."""
    # The absolute value changes no result, and keeps the constants apart (see `round_to`).
    return round_to(jnp.abs(x - 0.5))


def is_nearest(u):
    """Whether `u` is the number `NEAREST`, and not an array."""
    return isinstance(u, float)


def _scale_and_u(absmax, u):
    return (inverse(absmax),) if is_nearest(u) else (inverse(absmax), u)


def _normalized(x, scale):
    return (x * scale.astype(x.dtype)).astype(jnp.float32)


# --------------------------------------------------------------------------------------- power


# Roots by arithmetic on exponents: a first guess r of the inverse root, and a polynomial of y times
# a power of r, which is nearly constant. They take a CPU no division and no square root. Errors
# are to one side, and as large as `_cubes` and `_eighth_powers` allow.


def _cube_root(y, top):
    """`top` times the cube root of `y` from 0 to 1, 1e-5 to 1.7e-4 of it too large."""
    # In the mantissa of 2**23 + x stands x, here the exponent arithmetic's result in units of 2**8.
    bits = y.view(jnp.int32).astype(jnp.float32) * (2.0**-8 / 3)
    r = ((2.0**23 + _CUBE_ROOT_GUESS * 2.0**-8 - bits).view(jnp.int32) << 8).view(jnp.float32)
    z = (y * r) * r  # this order keeps y = 0 finite
    return z * _polynomial(z * r, _CUBE_ROOT, top)


def _eighth_root(y, top):
    """`top` times the eighth root of `y` from 0 to 1, 1e-5 to 6e-4 of it too large."""
    r = (_EIGHTH_ROOT_GUESS - (y.view(jnp.int32) >> 3)).view(jnp.float32)
    square = r * r
    z = y * ((square * square) * (square * r))
    return z * _polynomial(z * r, _EIGHTH_ROOT, top)


def _polynomial(x, coefficients, factor):
    """`factor` times a polynomial; the coefficient of the highest power comes first."""
    first, *others = (factor * x for x in coefficients)
    for y in others:
        first = first * x + y
    return first


_CUBE_ROOT_GUESS = 0x548E0000
_CUBE_ROOT = (1.313934284, -3.049283295, 2.759305093)
_EIGHTH_ROOT_GUESS = 0x47780000
_EIGHTH_ROOT = (-0.062182278, 0.490340489, -1.453123095, 1.987617381)
"""Fitted to `c**(-2/3)` and `c**(-7/8)`, by the largest relative error."""
_LEAST_U = 2.0**-14
"""Above the top, the next rung begins at this share of a gap, which is 1e-6 of the top or more."""


def power(signed, exponent, name="power"):
    """The codec with levels `(rung / n) ** exponent`, n = 127 signed and 255 unsigned."""
    top = 127 if signed else 255
    prepare, climb = {1: _evenly, 3: _cubes, 8: _eighth_powers}[exponent](top)

    def level(rung):
        # rung * (1 / top) is exactly 1 at the top for 127 and 255, in float32.
        return _power(rung * (1 / top), exponent)

    return Codec(
        name=name,
        signed=signed,
        top=top,
        dithered=True,
        negative_never_zero=False,
        odd=exponent % 2 == 1,
        level=level,
        raw=level,
        raw_root=lambda rung: (
            jnp.sqrt(level(rung)) if exponent % 2 else _power(rung * (1 / top), exponent // 2)
        ),
        unit=1.0,
        prepare=prepare,
        climb=lambda x, least, scale, *of_u: Climbed(climb(_normalized(x, scale), least, *of_u)),
    )


def _power(x, exponent):
    return x if exponent == 1 else x**exponent


def _at_least(rung, least):
    """The larger one.

    Of NaN a positive one stays, which ends as code 0: with a scale that is no number, that decodes
    to NaN.
    """
    if isinstance(least, float):
        return rung
    # Floats order as their bits do, but for two negative ones. XLA's CPU compiler makes one
    # instruction of a maximum of integers; of floats, among which could be a NaN, it makes four.
    return jnp.maximum(rung.view(jnp.int32), least.view(jnp.int32)).view(jnp.float32)


def _evenly(top):
    def prepare(absmax, u):
        # Rounding errors are not to move a value from the level that it lies on.
        return _scale_and_u(absmax, u if is_nearest(u) else jnp.clip(u, 2.0**-14, 1 - 2.0**-14))

    def climb(y, least, u=NEAREST):
        return _at_least(jnp.abs(jnp.minimum(top * y + (0.5 - u), top)), least)

    return prepare, climb


def _cubes(top):
    unit = top**-3

    def prepare(absmax, u):
        scale = inverse(absmax)
        # For the largest value of a block, rounding errors are not to lead above the top. It is one
        # number, of which `climb` makes more: XLA's CPU compiler compiles a program for every one.
        return (scale,) if is_nearest(u) else (scale, unit * (1 - jnp.maximum(u, _LEAST_U)))

    def climb(y, least, rest=0.5 * unit):
        # The rung that goes by the root alone is the right one or the one above it, because the
        # root is taken too large, and a share of the gap between two cubes lies above the cube of
        # that share. Where rounding turns to rung r, (1 - u) * (r - 1)**3 + u * r**3, decides.
        offset, slope = rest * (1 / unit) - 0.5, 3 * rest  # 0.5 - u, 3 * unit * (1 - u)
        rung = jnp.round(_cube_root(y, top) + offset)
        turn = ((unit * rung - slope) * rung + slope) * rung - rest
        return _at_least(jnp.where(y <= turn, rung - 1, rung), least)

    return prepare, climb


def _eighth_powers(top):
    def prepare(absmax, u):
        scale = inverse(absmax)
        return (scale,) if is_nearest(u) else (scale, jnp.maximum(u, _LEAST_U))

    def climb(y, least, u=NEAREST):
        # As with cubes. The absolute value is for a NaN.
        rung = jnp.abs(jnp.round(_eighth_root(y, top) + (0.5 - u)))
        low, high = ((rung - 1) * (1 / top)) ** 8, (rung * (1 / top)) ** 8
        rung = jnp.where(y <= low + u * (high - low), rung - 1, rung)
        return _at_least(rung, jnp.asarray(least, jnp.float32))

    return prepare, climb


# ------------------------------------------------------------------------------------- dynamic


def dynamic(signed, five_to=None, five_to_7_minus=None):
    """Bitsandbytes' dynamic map in closed form; for the other arguments see `_Dynamic`."""
    ladder = _Dynamic(signed, five_to or _five_to, five_to_7_minus or _five_to_7_minus)
    return Codec(
        name="dynamic",
        signed=signed,
        top=ladder.top,
        dithered=False,
        negative_never_zero=signed,
        odd=False,
        level=ladder.level,
        raw=ladder.level,
        raw_root=lambda rung: jnp.sqrt(ladder.level(rung)),
        unit=1.0,
        prepare=_scale_and_u,
        climb=ladder.climb,
    )


class _Dynamic(NamedTuple):
    """Seven decades, of which decade i holds N equally spaced levels.

    N = 2**i signed and 2**(i+1) unsigned: `10**(i-6) * (0.1 + 0.9 * (j + 0.5) / N)`. Counting rungs
    so that `a = N + j` turns decade and place in the decade into exponent and mantissa of `a`.
    Signed, +1 has a code and -1 has none.
    """

    signed: bool
    five_to: Callable
    """`five_to(2**i)` is `5**i` for i from 0 to 7, which must be exact; of 0 it is 0."""
    five_to_7_minus: Callable
    """`five_to_7_minus(2**23 + i)` is `5**(7 - i)`."""

    @property
    def top(self):
        """The rung of magnitude 1."""
        return 128 if self.signed else 255

    @property
    def shift(self):
        """What is added to a rung to make `a` of it."""
        return 0 if self.signed else 1

    @property
    def most(self):
        """Levels in the last decade."""
        return 64.0 if self.signed else 128.0

    def level(self, rung):
        """How high a rung is."""
        a = rung if self.signed else rung + 1  # and the sign does not matter
        count = (a.view(jnp.int32) & 0x7F800000).view(jnp.float32)  # N, or 0
        # 10**i / N is a power of five, or half of it: the only rounding is that of 1e-6.
        inside = 0.9 * (jnp.abs(a) - count) + (0.1 * count + 0.45)
        value = inside * (self.five_to(count) * (1e-6 if self.signed else 0.1e-6))
        value = jnp.where(jnp.abs(rung) >= self.top, 1.0, value)
        return value if self.signed else jnp.where(rung == 0, 0.0, value)

    def place(self, y):
        """N of the decade of `y`, and how many of the N parts of the decade lie below `y`."""
        # A little more than the logarithm, so that no rounding error puts the start of a decade
        # into the decade below. It may put the end of one into the decade above; place is then
        # -3e-5, and what follows treats that as the start.
        decade = jnp.log2(jnp.maximum(y, 3.2e-7)) * _LOG10_2 + (6.5 + 2e-6)
        decade = jnp.minimum(decade, 6.4) + 2.0**23  # rounded, 2**23 + i
        exponent = (decade.view(jnp.int32) << 23) + ((127 + self.shift) << 23)
        count = exponent.view(jnp.float32)
        # 10**(6 - i) * N is 5**(6 - i) * most.
        scaled = y * (self.five_to_7_minus(decade) * (self.most / 0.9 / 5))
        return count, scaled - count * (1 / 9)

    def nearest(self, y):
        """The rung of the level that is nearest to `y`."""
        count, parts = self.place(y)
        # Levels are the middles of the parts. Below the first one of a decade the spacing changes,
        # and so does the height at which the level below is as near.
        turn = jnp.where(count == 2.0**self.shift, 7 / 36 if self.signed else 5 / 36, 0.2)
        j = jnp.where(parts < turn, -1.0, floor_to(parts))
        return jnp.where(y > 1 - 0.225 / self.most, self.top, count + j - self.shift)

    def climb(self, x, least, scale, u=NEAREST):
        """As of a `Codec`."""
        y = _normalized(x, scale)
        if is_nearest(u):
            return Climbed(jnp.maximum(self.nearest(y), least))
        y = jnp.minimum(y, 1)  # a reciprocal may be too large, and there is no rung above the top
        count, parts = self.place(y)
        rung = jnp.minimum(count + (round_to(parts) - (1 + self.shift)), self.top - 1)
        low, high = self.level(rung), self.level(rung + 1)
        rung = jnp.where(y > low + u * (high - low), rung + 1, rung)
        return Climbed(jnp.maximum(rung, least))


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
