"""What an 8-bit code means: encoding to the rungs of a ladder, decoding, and the codecs by name.

A codec is a ladder of levels (see `ladders`). A signed one uses it twice, mirrored about zero; its
codes are rungs in two's complement, so that byte 0 is zero in every codec, and zeros are a fresh
state. `encode` and `decode` are written once for all of them.

Like the ladders, they use only `jax.numpy` operations that also exist inside GPU kernels.
"""

import jax.numpy as jnp

from pallas_kernels.arithmetic.ladders import ROUND, Codec, dynamic, power


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
    """The rung of every code, with the sign of the value; float32 numbers are rungs already."""
    if codes.dtype == jnp.float32:
        return codes
    if codes.dtype == jnp.uint8:
        rung = (codes.astype(jnp.int8) if codec.signed else codes).astype(jnp.float32)
        return jnp.where(rung == -128, 128, rung) if codec.signed and codec.top == 128 else rung
    # The absolute value keeps XLA from undoing the addition that has rounded, as `round_to` says.
    return jnp.abs(codes.view(jnp.float32)) - ROUND


def storable(codec, values):
    """Values that a codec can store: 0 for those that are not finite, or negative if unsigned."""
    finite = jnp.abs(values) < jnp.inf
    return jnp.where(finite, jnp.clip(values, -_LARGEST if codec.signed else 0.0, _LARGEST), 0)


_LARGEST = 2.0**126
"""The largest absmax whose inverse is a normal float32 number."""


def as_bytes(codes):
    """Codes as `encode` gives them, as uint8."""
    return codes.astype(jnp.uint8)


def encode(codec, values, prepared, *, keep_nonzero=False):
    """The codes of values, elementwise, as the bits of a float32 number that ends with the code.

    What decodes takes these int32 numbers as they are, and `as_bytes` makes bytes of them.

    Args:
      codec: A `Codec`.
      values: Array, not negative if the codec is unsigned.
      prepared: What `codec.prepare` says of the block of every element.
      keep_nonzero: Store what is not zero at least on the first rung. For second moments, by whose
        root a step divides: one that is rounded to zero blows the update up.

    Returns:
      `(codes, roots)`: the roots are those of `decode_raw_root`, if they are at hand, or None.
    """
    magnitude = jnp.abs(values) if codec.signed else values
    if codec.negative_never_zero:
        keep = values != 0 if keep_nonzero else values < 0
    else:
        keep = magnitude > 0 if keep_nonzero else None
    least = 0.0 if keep is None else keep.astype(jnp.float32)
    rung, root = codec.climb(magnitude, least, *prepared)
    if codec.signed:
        rung = with_sign_of(values.astype(jnp.float32), rung)
    number = rung + ROUND
    if codec.signed and codec.top == 128:  # the top has no code on the negative side
        number = jnp.maximum(number, ROUND - 127)
    return number.view(jnp.int32), root


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


def get_codec(name: str, signed: bool) -> Codec:
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
