"""Blocks: which elements share a scale, what shape the scales have, and what a block survives."""

import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from tests import oracles
from tests.kernels.codec_judge import (
    KINDS,
    check_layout,
    check_nearest,
    dequantize,
    kind_id,
    level_error,
    quantize,
    sample,
)

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096, None)
SHAPES = {
    "empty": (0,),
    "one": (1,),
    "short_of_a_block": (255,),
    "one_block": (256,),
    "odd_tail": (257,),
    "short_of_sixteen": (4095,),
    "sixteen_blocks": (4096,),
    "sixteen_and_a_tail": (4097,),
    "scalar": (),
    "matrix": (24, 512),
    "ragged_matrix": (7, 300),
    "four_d": (2, 3, 4, 256),
    "four_d_ragged": (3, 3, 5, 7),
    "empty_rows": (0, 256),
    "no_columns": (4, 0),
}
SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@SHAPE
@pytest.mark.parametrize("block_size", [32, 256, None])
def test_every_shape_has_its_blocks(shape, block_size):
    x = sample(shape)
    codes, absmax = quantize(x, block_size=block_size)
    check_layout(x, codes, absmax, block_size)
    check_nearest(x, codes, absmax, block_size, "power", True)
    back = dequantize(codes, absmax, block_size=block_size)
    assert back.shape == shape and back.dtype == jnp.float32
    expected = oracles.decode(np.asarray(codes), absmax, block_size, "power", True)
    np.testing.assert_allclose(back, expected, rtol=level_error("power", True) + 2.0**-24)


@pytest.mark.parametrize(
    "block_size, codec, signed",
    [(size, "power", True) for size in BLOCK_SIZES if size != 256]
    + [(256, codec, signed) for codec in oracles.CODECS for signed in (True, False)],
    ids=kind_id,
)
def test_every_block_size_rounds_to_nearest(block_size, codec, signed):
    for shape in [(2, 4096), (4097,)]:
        x = sample(shape, seed=1, signed=signed)
        codes, absmax = quantize(x, block_size=block_size, codec=codec, signed=signed)
        check_layout(x, codes, absmax, block_size)
        check_nearest(x, codes, absmax, block_size, codec, signed)
        back = dequantize(codes, absmax, block_size=block_size, codec=codec, signed=signed)
        expected = oracles.decode(np.asarray(codes), absmax, block_size, codec, signed)
        # The level's error, and one rounding for the product with the scale.
        np.testing.assert_allclose(back, expected, rtol=level_error(codec, signed) + 2.0**-24)


@pytest.mark.parametrize("seed", [None, 2**31 - 1])
def test_results_are_the_same_with_and_without_jit(seed):
    x = sample((7, 300), seed=2)
    codes, absmax = pallas_kernels.quantize(x, seed=seed)
    jitted = quantize(x, seed=seed)
    np.testing.assert_array_equal(codes, jitted[0])
    np.testing.assert_array_equal(absmax, jitted[1])
    back = pallas_kernels.dequantize(codes, absmax)
    np.testing.assert_array_equal(back, dequantize(codes, absmax))


def test_values_beyond_the_documented_limit_are_cut_to_it():
    x = np.float32([3e38, 2.0**126, -1e38, 2.0**125, 1.0])
    codes, absmax = quantize(x)
    np.testing.assert_array_equal(absmax, np.float32([2.0**126]))
    np.testing.assert_array_equal(codes[:3], [127, 127, 129])  # the top, and below zero


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_blocks_do_not_see_each_other(block_size):
    x = np.asarray(sample((9000,), seed=3))
    codes, absmax = quantize(x, block_size=block_size)
    loud = x.copy()
    loud[5000] = 1e6
    loud_codes, loud_absmax = quantize(loud, block_size=block_size)
    other = oracles.block_of(x.size, block_size) != oracles.block_of(x.size, block_size)[5000]
    np.testing.assert_array_equal(loud_codes[other], codes[other])
    assert (np.asarray(loud_absmax) != np.asarray(absmax)).sum() == 1


@KINDS
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1.0, 3e38])
def test_zero_codes_decode_to_zero_whatever_the_scale(scale, codec, signed):
    zeros = np.zeros(300, np.uint8)
    back = dequantize(zeros, np.full(2, scale, np.float32), codec=codec, signed=signed)
    np.testing.assert_array_equal(back, np.zeros(300))


@KINDS
def test_a_block_of_zeros_stays_finite(codec, signed):
    x = np.zeros((3, 256), np.float32)
    x[1] = np.linspace(0, 1, 256)
    codes, absmax = quantize(x, codec=codec, signed=signed)
    np.testing.assert_array_equal(codes[0], 0)
    np.testing.assert_array_equal(absmax[:, 0], [0, 1, 0])
    back = np.asarray(dequantize(codes, absmax, codec=codec, signed=signed))
    assert np.isfinite(back).all() and not back[[0, 2]].any()


@KINDS
def test_a_block_of_subnormals_stays_finite(codec, signed):
    x = np.full(256, 1e-41, np.float32)
    codes, absmax = quantize(x, codec=codec, signed=signed)
    back = np.asarray(dequantize(codes, absmax, codec=codec, signed=signed), np.float64)
    assert np.isfinite(absmax).all()
    # Either kept or flushed to zero, as XLA does on some devices.
    assert ((back == 0) | np.isclose(back, 1e-41, rtol=0.01)).all()


@KINDS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_stored_as_zero_and_harm_nobody(bad, codec, signed):
    x = np.asarray(sample((3, 512), seed=4, signed=signed)).copy()
    x[1, 7] = 0
    expected = quantize(x, codec=codec, signed=signed)
    x[1, 7] = bad
    codes, absmax = quantize(x, codec=codec, signed=signed)
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(absmax, expected[1])


@KINDS
def test_codes_do_not_depend_on_the_scale(codec, signed):
    # x spans 1e-6 to 10: 2**-100 x stays a normal float32, 2**122 x below the limit of 2**126.
    rng = np.random.default_rng(5)
    x = np.exp(rng.uniform(np.log(1e-6), np.log(10), 1024)) * rng.choice([-1, 1], 1024)
    x = (x if signed else abs(x)).astype(np.float32)
    codes, absmax = quantize(x, codec=codec, signed=signed)
    for k in (-100, -63, -7, 1, 20, 64, 100, 122):
        scaled, scaled_absmax = quantize(x * np.float32(2.0**k), codec=codec, signed=signed)
        np.testing.assert_array_equal(scaled, codes)
        np.testing.assert_array_equal(scaled_absmax, np.asarray(absmax) * np.float32(2.0**k))
