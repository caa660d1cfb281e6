"""What an 8-bit code means: arithmetic between magnitudes in [0, 1] and the rungs of a ladder.

A codec is a ladder of magnitudes, from 0 on rung 0 to exactly 1 on rung `top`, given by two
functions: `level(rung)` says how high a rung is, and `position(y)` finds the rung at or just beside
a magnitude. Signed codecs use the ladder twice, mirrored about the code of zero.

`encode` is written once for all of them. It takes the rung that `position` names, works out where
in the gap above it rounding turns upwards (half way for round-to-nearest, at a random height for
stochastic rounding), and compares. So for round-to-nearest `position` need not be exact: any guess
that lands on the rung below or on the nearest rung yields the same code, which is what lets a cheap
cube root give correctly rounded codes, and every implementation the same ones.

Only `jax.numpy` operations that also exist inside GPU kernels are used: no tables, no `floor`, no
`cbrt`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp


class Codec(NamedTuple):
    """A map between 256 codes and the values in [-1, 1] (signed) or [0, 1] (unsigned).

    Rungs are whole numbers in float32, which spares the conversions to and from integers.

    - `level` is strictly increasing on `0..top`; `level(0) == 0` and `level(top) == 1` exactly.
    - `position(y)` is the rung below `y` or the rung nearest to it, or misses by a rounding error.
    - A value on a rung has the code `zero_code + rung`, or `zero_code - rung` if it is negative.
    """

    name: str
    signed: bool
    zero_code: int
    """The code whose value is exactly 0; fresh state is filled with it."""
    top: int
    """The rung of magnitude 1."""
    top_negative: int
    """The last rung on the negative side: below `top` where -1 has no code; 0 if unsigned."""
    negative_never_zero: bool
    """Negative values are never stored as zero (the sign rule of bitsandbytes' signed map)."""
    odd: bool
    """`level(-rung) == -level(rung)`, so that decoding needs no case for the sign."""
    level: Callable
    position: Callable
    position_is_floor: bool
    """`position` names the rung below, but for a rounding error, which random rounding needs."""


def decode(codec, codes, dtype=jnp.float32):
    """Values in [-1, 1] of uint8 `codes`, elementwise, in `dtype`."""
    rung = codes.astype(jnp.float32) - codec.zero_code
    if codec.odd or not codec.signed:
        return codec.level(rung).astype(dtype)
    magnitude = codec.level(jnp.abs(rung))
    return jnp.where(rung < 0, -magnitude, magnitude).astype(dtype)


def encode(codec, values, scale, height, *, keep_nonzero=False):
    """The uint8 codes of `values * scale`, elementwise.

    Args:
      codec: A `Codec`.
      values: Array. With an unsigned codec, negative values count as 0.
      scale: What brings the values to [-1, 1]: 1 / absmax of the block, or 0 for a block of zeros.
      height: Where in the gap between two neighbouring levels rounding turns upwards: the Python
        number 0.5 rounds to the nearest level, an array of uniform random numbers in [0, 1) rounds
        without bias.
      keep_nonzero: Store what is not zero at least on the first rung. For second moments, by whose
        root a step divides: one that is rounded to zero blows the update up.
    """
    magnitude = jnp.abs(values) if codec.signed else jnp.maximum(values, 0)
    # The clip absorbs the rounding of 1 / absmax, and keeps rung `top` the last one.
    y = jnp.minimum(magnitude * scale, 1).astype(jnp.float32)
    rung = codec.position(y)
    if not (codec.position_is_floor or isinstance(height, float)):
        rung = jnp.where(y < codec.level(rung), rung - 1, rung)
        rung = jnp.where(y >= codec.level(rung + 1), rung + 1, rung)
    below = codec.level(rung)
    turn = below + height * (codec.level(rung + 1) - below)
    rung = jnp.where(y > turn, rung + 1, rung)
    if keep_nonzero:
        rung = jnp.maximum(rung, (magnitude > 0).astype(jnp.float32))
    if not codec.signed:
        return _to_uint8(rung)
    negative = values < 0
    if codec.negative_never_zero:
        rung = jnp.maximum(rung, negative.astype(jnp.float32))
    if codec.top_negative < codec.top:
        rung = jnp.where(negative, jnp.minimum(rung, codec.top_negative), rung)
    return _to_uint8(codec.zero_code + jnp.where(negative, -rung, rung))


def _truncate(x):
    """The whole number below `x`, or either neighbour of an `x` that is one. For `x >= 0`."""
    return jnp.round(x - 0.5)


def _to_uint8(x):
    """Whole numbers from 0 to 255 in float32 as uint8, without XLA's checks for other numbers."""
    return (x + 2.0**23).view(jnp.int32).astype(jnp.uint8)


# --------------------------------------------------------------------------------------- power


def _cube_root(y):
    """The cube root of `y >= 0` to 0.16 %, without a division.

    `encode` needs 0.39 %: half a rung at rung 127. Exponent arithmetic on the bits gives the
    inverse root to 3.5 %, one Newton step the rest; its constants are fitted, as Newton's own
    would leave an error to one side only.
    """
    # In the mantissa of 2**23 + x stands x, here the exponent arithmetic's result in units of 2**8.
    bits = y.view(jnp.int32).astype(jnp.float32) * (2.0**-8 / 3)
    r = ((2.0**23 + _CBRT_MAGIC * 2.0**-8 - bits).view(jnp.int32) << 8).view(jnp.float32)
    r = r * (_CBRT_A - _CBRT_B * (((y * r) * r) * r))  # this order keeps y = 0 finite
    return (y * r) * r


_CBRT_MAGIC = 0x548E0000
_CBRT_A, _CBRT_B = 1.48580509, 0.51277594

_ROOTS = {
    1: lambda y: y,
    2: jnp.sqrt,
    3: _cube_root,
    4: lambda y: jnp.sqrt(jnp.sqrt(y)),
    8: lambda y: jnp.sqrt(jnp.sqrt(jnp.sqrt(y))),
}


def power(signed, exponent, name="power"):
    """The codec with levels `(rung / n) ** exponent`, n = 127 signed and 255 unsigned."""
    top = 127 if signed else 255
    root = _ROOTS[exponent]

    def level(rung):
        # rung * (1 / top) is exactly 1 at the top for 127 and 255, in float32.
        return (rung * (1 / top)) ** exponent

    def position(y):
        return _truncate(top * root(y))

    return Codec(
        name=name,
        signed=signed,
        zero_code=128 if signed else 0,
        top=top,
        top_negative=top if signed else 0,
        negative_never_zero=False,
        odd=exponent % 2 == 1,
        level=level,
        position=position,
        position_is_floor=exponent != 3,
    )


# ------------------------------------------------------------------------------------- dynamic


def dynamic(signed):
    """Bitsandbytes' dynamic map in closed form.

    Seven decades; decade i holds N equally spaced levels, N = 2**i signed and 2**(i+1) unsigned:
    `10**(i-6) * (0.1 + 0.9 * (j + 0.5) / N)`. Counting rungs so that `a = N + j` turns decade and
    place in the decade into exponent and mantissa of `a`. Signed, +1 has a code and -1 has none.
    """
    shift = 0 if signed else 1  # a = rung + shift
    top = 128 if signed else 255

    def level(rung):
        bits = (rung + shift).view(jnp.int32)
        exponent = bits & 0x7F800000
        fraction = (bits & 0x007FFFFF | 0x3F800000).view(jnp.float32) - 1  # j / N
        half = (0x7F000000 - exponent).view(jnp.float32) * 0.45  # 0.9 * 0.5 / N
        value = (0.1 + 0.9 * fraction + half) * _pow10((exponent >> 23) - 127 - shift)
        return jnp.where(rung == 0, 0.0, jnp.where(rung >= top, 1.0, value))

    def position(y):
        decade = jnp.zeros(y.shape, jnp.int32)
        for k in range(-6, 0):
            decade = decade + (y >= 10.0**k).astype(jnp.int32)
        count = ((decade + shift + 127) << 23).view(jnp.float32)  # N
        # 10**(6 - decade) scales the decade to [0.1, 1); the top one stays as it is.
        place = (y * _inverse_pow10(decade) - 0.1) * (count * (1 / 0.9)) + 0.5
        # Truncation is `floor` here: `place` is 0.27 or more. Place 0 is the last rung of the
        # decade below.
        return count + (_truncate(place) - (1 + shift))

    return Codec(
        name="dynamic",
        signed=signed,
        zero_code=127 if signed else 0,
        top=top,
        top_negative=127 if signed else 0,
        negative_never_zero=signed,
        odd=False,
        level=level,
        position=position,
        position_is_floor=True,
    )


def _select_decade(decade, values):
    out = jnp.float32(values[-1])
    for i, value in enumerate(values[:-1]):
        out = jnp.where(decade == i, jnp.float32(value), out)
    return out


def _pow10(decade):
    return _select_decade(decade, [10.0**e for e in range(-6, 1)])


def _inverse_pow10(decade):
    return _select_decade(decade, [10.0**e for e in range(6, -1, -1)])


# ------------------------------------------------------------------------------------ registry

CODECS = {
    ("power", True): power(True, 3),
    ("power", False): power(False, 8),
    ("linear", True): power(True, 1, "linear"),
    ("linear", False): power(False, 1, "linear"),
    ("dynamic", True): dynamic(True),
    ("dynamic", False): dynamic(False),
}
"""Every codec by name and signedness. Why these exponents: README, "Choosing a codec"."""

CODEC_NAMES = tuple(dict.fromkeys(name for name, _ in CODECS))


def get_codec(name, signed):
    """The codec called `name` for signed or unsigned values.

    Raises:
      TypeError: `signed` is not a bool.
      ValueError: There is no codec of that name.
    """
    if not isinstance(signed, bool):
        raise TypeError(f"`signed` must be True or False, got {signed!r}.")
    try:
        return CODECS[name, signed]
    except (KeyError, TypeError):
        known = ", ".join(f'"{n}"' for n in CODEC_NAMES)
        raise ValueError(f"Unknown codec {name!r}. Choose one of {known}.") from None
