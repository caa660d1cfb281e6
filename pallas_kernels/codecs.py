"""What an 8-bit code means: encoding to the rungs of a ladder, decoding, and the codecs by name.

A codec is a ladder of levels (see `ladders`). A signed one uses it twice, mirrored about the code
of zero. `encode` and `decode` are written once for all of them, and so is stochastic rounding.

Like the ladders, they use only `jax.numpy` operations that also exist inside GPU kernels.
"""

import jax.numpy as jnp

from pallas_kernels.ladders import Codec, dynamic, power


def decode(codec, codes, dtype=jnp.float32):
    """Values in [-1, 1] of `codes`, elementwise, in `dtype`."""
    return _with_sign(codec, codec.level, _rung(codec, codes)).astype(dtype)


def decode_raw(codec, codes, dtype=jnp.float32):
    """The values of `codes`, in units of `codec.unit`."""
    return _with_sign(codec, codec.raw, _rung(codec, codes)).astype(dtype)


def decode_raw_root(codec, codes, dtype=jnp.float32):
    """Roots of the values of `codes` of an unsigned codec, in units of the root of `codec.unit`."""
    return codec.raw_root(_rung(codec, codes)).astype(dtype)


def _with_sign(codec, level, rung):
    if codec.odd or not codec.signed:
        return level(rung)
    return with_sign_of(rung, level(rung))


def _rung(codec, codes):
    if codes.dtype == jnp.uint8:
        rung = codes.astype(jnp.float32)
        return rung - codec.zero_code if codec.zero_code else rung
    # The absolute value keeps XLA from undoing the addition that has rounded, as `round_to` says.
    number = jnp.abs(codes.view(jnp.float32))
    rung = number - (2.0**23 + codec.zero_code) * codec.quantum
    return rung if codec.quantum == 1 else rung * (1 / codec.quantum)


def storable(codec, values):
    """Values that a codec can store: 0 for those that are not finite, or negative if unsigned."""
    finite = jnp.abs(values) < jnp.inf
    return jnp.where(finite, jnp.clip(values, -_LARGEST if codec.signed else 0.0, _LARGEST), 0)


_LARGEST = 2.0**126
"""The largest absmax whose inverse is a normal float32 number."""


def as_bytes(codes):
    """Codes as `encode` gives them, as uint8."""
    return codes.astype(jnp.uint8)


def encode(codec, values, scale, height=None, *, keep_nonzero=False):
    """The codes of values, elementwise, as the bits of a float32 number that ends with the code.

    What decodes takes these int32 numbers as they are, and `as_bytes` makes bytes of them.

    Args:
      codec: A `Codec`.
      values: Array, not negative if the codec is unsigned.
      scale: `codec.scale` of the block's absmax.
      height: Where in the gap between two neighbouring levels rounding turns upwards. None rounds
        to the nearest level; an array of uniform random numbers between 1, the bottom of the gap,
        and 2 rounds without bias.
      keep_nonzero: Store what is not zero at least on the first rung. For second moments, by whose
        root a step divides: one that is rounded to zero blows the update up.
    """
    if height is not None:
        return encode_at_random(codec, values, scale, height, keep_nonzero=keep_nonzero)[0]
    magnitude = jnp.abs(values) if codec.signed else values
    rung = codec.nearest(magnitude, scale)
    if keep_nonzero:
        rung = jnp.where(magnitude > 0, jnp.maximum(rung, codec.quantum), rung)
    return _as_number(codec, values, rung)


def encode_at_random(codec, values, scale, height, *, keep_nonzero=False):
    """`encode` with a `height`: the codes, and the roots of the levels that they stand for."""
    magnitude = jnp.abs(values) if codec.signed else values
    y = (magnitude * scale).astype(jnp.float32)
    rung, low, high = codec.bracket(y)
    # If it has to keep what is not zero, rounding turns upwards right above the lowest rung.
    top = jnp.where(rung == 0, 0, high.height) if keep_nonzero else high.height
    up = y > (2 * low.height - top) + height * (top - low.height)
    codes = _as_number(codec, values, jnp.where(up, rung + codec.quantum, rung))
    return codes, jnp.where(up, high.root, low.root)


def _as_number(codec, values, rung):
    if codec.negative_never_zero:  # a rung that is not rounded yet may be bounded all the same
        rung = jnp.where(values < 0, jnp.maximum(rung, codec.quantum), rung)
    if codec.signed:
        rung = with_sign_of(values.astype(jnp.float32), rung)
    number = rung + (2.0**23 + codec.zero_code) * codec.quantum
    if codec.signed and codec.top > codec.zero_code:  # the top has no code on the negative side
        number = jnp.maximum(number, 2.0**23 * codec.quantum)
    return number.view(jnp.int32)


def with_sign_of(x, size):
    """`size` for positive `x`, `-size` for negative `x`; either for zero."""
    if x.dtype != jnp.float32:
        return jnp.copysign(jnp.ones((), x.dtype), x) * size
    # One instruction on a GPU, where `jnp.copysign` would be three; and `size` may be negative.
    return ((x.view(jnp.int32) & _SIGN_BIT) ^ size.view(jnp.int32)).view(jnp.float32)


_SIGN_BIT = -(2**31)


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


def get_codec(name, signed) -> Codec:
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
