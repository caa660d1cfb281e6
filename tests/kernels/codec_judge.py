"""What the codec tests share: kinds of codes, sample data, and judges of a stored tensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from tests import oracles

# As inside an optimizer, and many times faster than one operation after the other.
_KIND = ("block_size", "codec", "signed")
quantize = jax.jit(pallas_kernels.quantize, static_argnames=(*_KIND, "keep_nonzero"))
dequantize = jax.jit(pallas_kernels.dequantize, static_argnames=(*_KIND, "dtype"))


def kind_id(value):
    """Names a parameter of a test: codec, signedness or block size."""
    return ("signed" if value else "unsigned") if isinstance(value, bool) else str(value)


KINDS = pytest.mark.parametrize(
    "codec, signed",
    [(codec, signed) for codec in oracles.CODECS for signed in (True, False)],
    ids=kind_id,
)


def encode(y, codec, signed, **options):
    """Codes of float32 values in [-1, 1], the largest of which is 1."""
    codes, absmax = quantize(
        np.asarray(y, np.float32), block_size=None, codec=codec, signed=signed, **options
    )
    np.testing.assert_array_equal(absmax, [1.0])
    return np.asarray(codes)


def decode(codes, codec, signed, absmax=1.0):
    """Values of codes under one scale, as float64 NumPy."""
    scale = jnp.full(1, absmax, jnp.float32)
    values = dequantize(jnp.asarray(codes), scale, block_size=None, codec=codec, signed=signed)
    assert values.dtype == jnp.float32
    return np.asarray(values, np.float64)


def level_error(codec, signed):
    """How far a decoded level may be off, relative to it; +-1 and 0 are exact.

    In units of 2**-24, half an ulp: bitsandbytes' map is defined up to 2 ulp. `k / n` takes two
    roundings (1/n and the product), which a power p multiplies by p; cubing adds two products,
    and three squarings add 4 + 2 + 1.
    """
    units = {"dynamic": 4, "linear": 2, "power": 3 * 2 + 2 if signed else 8 * 2 + 7}[codec]
    return units * 2.0**-24


def sample(shape, seed=0, signed=True, dtype=np.float32):
    """Normal values whose scale varies from element to element."""
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.normal(size=shape) * rng.lognormal(size=shape))
    return jnp.asarray(x if signed else abs(x), dtype)


def check_nearest(x, codes, absmax, block_size, codec, signed):
    """Every code is the nearest level, ties excepted (see `test_codecs`)."""
    y = oracles.normalize(np.asarray(x, np.float64), absmax, block_size)
    excess, gap = oracles.nearest_excess(y, codes, codec, signed)
    assert (excess <= 1e-4 * gap).all()


def check_layout(x, codes, absmax, block_size):
    assert codes.dtype == jnp.uint8 and codes.shape == x.shape
    assert absmax.dtype == jnp.float32
    assert absmax.shape == oracles.absmax_shape(x.shape, block_size)
    np.testing.assert_array_equal(absmax, oracles.block_absmax(x, block_size))
