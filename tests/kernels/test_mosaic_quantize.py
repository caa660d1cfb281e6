"""The quantization kernels, in the interpreter and with `-m gpu` on a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.mosaic import quantize as mosaic_quantize
from pallas_kernels.mosaic.tile import INTERPRET
from tests import oracles
from tests.kernels.codec_judge import KINDS, check_layout, level_error, sample

SHAPES = [(4096,), (9001,), (35, 256), (9, 512)]
ON = pytest.mark.parametrize(
    "interpret",
    [
        pytest.param(INTERPRET, id="interpreted"),
        pytest.param(None, id="gpu", marks=pytest.mark.gpu),
    ],
)


def quantize(x, codec, signed, interpret, key=None, keep_nonzero=False):
    function = functools.partial(
        mosaic_quantize.quantize, block_size=256, codec=get_codec(codec, signed),
        keep_nonzero=keep_nonzero, interpret=interpret,
    )  # fmt: skip
    return jax.jit(function)(x, key)


@ON
@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_the_nearest(codec, signed, shape, interpret):
    x = sample(shape, signed=signed)
    codes, absmax = quantize(x, codec, signed, interpret)
    check_layout(x, codes, absmax, 256)
    y = oracles.normalize(np.asarray(x, np.float64), absmax, 256)
    excess, gap = oracles.nearest_excess(y, codes, codec, signed)
    assert (excess <= 1e-3 * gap).all()  # the tie of `kernel_ladders.for_kernel`


@ON
@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantize_is_the_inverse(codec, signed, shape, interpret):
    codes, absmax = quantize(sample(shape, signed=signed), codec, signed, interpret)
    function = functools.partial(
        mosaic_quantize.dequantize, block_size=256, codec=get_codec(codec, signed),
        dtype=jnp.float32, interpret=interpret,
    )  # fmt: skip
    values = np.asarray(jax.jit(function)(codes, absmax), np.float64)
    exact = oracles.decode(codes, absmax, 256, codec, signed)
    # The level's error, and the product's rounding.
    assert (np.abs(values - exact) <= (level_error(codec, signed) + 2.0**-24) * np.abs(exact)).all()


@ON
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_good(dtype, interpret):
    x = sample((9001,), dtype=dtype)
    wide = quantize(x.astype(jnp.float32), "power", True, interpret)
    jax.tree.map(np.testing.assert_array_equal, quantize(x, "power", True, interpret), wide)


@ON
def test_non_finite_elements_are_stored_as_zero(interpret):
    x = sample((9001,)).at[np.array([3, 4000, 9000])].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    codes, absmax = quantize(x, "power", True, interpret)
    assert np.isfinite(absmax).all()
    np.testing.assert_array_equal(codes[np.array([3, 4000, 9000])], 0)


@ON
@pytest.mark.parametrize("codec, signed", [("power", False), ("dynamic", False), ("power", True)])
def test_random_rounding_is_that_of_xla(codec, signed, interpret):
    x, seed = sample((9001,), signed=signed), jnp.uint32(7)
    expected, _ = pallas_kernels.quantize(
        x, codec=codec, signed=signed, seed=7, keep_nonzero=True, implementation="xla"
    )
    key = pallas_kernels.arithmetic.hashing.mix(seed)
    codes, _ = quantize(x, codec, signed, interpret, key, keep_nonzero=True)
    ranks = (oracles.ranks(np.asarray(x), codec, signed) for x in (codes, expected))
    apart = np.abs(np.subtract(*ranks))
    # One apart where the random turn is within rounding errors of the value.
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("call", ["quantize", "dequantize"])
def test_a_kernel_that_cannot_run_says_why(call):
    x = sample((9001,))
    codes, absmax = pallas_kernels.quantize(x)
    arrays = (x,) if call == "quantize" else (codes, absmax)
    function = getattr(pallas_kernels, call)
    with pytest.raises(ValueError, match='needs an NVIDIA GPU.*compiled for cpu.*"xla"'):
        function(*arrays, implementation="mosaic")
    with pytest.raises(ValueError, match="does not exist.*mosaic.*xla"):
        function(*arrays, implementation="cuda")
