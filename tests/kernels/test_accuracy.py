"""How much a round trip through 8 bits costs, in every dtype, and what bitsandbytes stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.kernels.codec_judge import (
    KINDS,
    check_layout,
    check_nearest,
    dequantize,
    kind_id,
    quantize,
    sample,
)

# Mean absolute and mean relative error on normal and on uniform values, blocks of 256.
ANCHORS = {
    ("power", True): [0.00679, 0.01149, 0.00352, 0.00882],
    ("dynamic", True): [0.00852, 0.01537, 0.00319, 0.00994],
    ("linear", True): [0.00596, 0.03108, 0.00195, 0.01489],
    ("power", False): [None, None, 0.00415, 0.00892],
    ("dynamic", False): [None, None, 0.00160, 0.00501],
}


@pytest.mark.parametrize("codec, signed", ANCHORS, ids=kind_id)
def test_mean_errors_are_the_known_ones(codec, signed):
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((1024, 1024), dtype=np.float32)
    uniform = rng.random((1024, 1024), dtype=np.float32)
    seen = []
    for x in (normal, uniform):
        if signed or x is uniform:
            codes, absmax = quantize(x, codec=codec, signed=signed)
            back = np.asarray(dequantize(codes, absmax, codec=codec, signed=signed))
            error = np.abs(x - back).astype(np.float64)
            seen += [error.mean(), (error / (np.abs(x) + 1e-8)).mean()]
    expected = [anchor for anchor in ANCHORS[codec, signed] if anchor is not None]
    # The anchors have five decimals; ties weigh nothing.
    np.testing.assert_allclose(seen, expected, atol=6e-6)


@KINDS
@pytest.mark.parametrize("block_size", [64, 256, None])
def test_errors_are_at_most_half_a_gap(block_size, codec, signed):
    x = np.asarray(sample((33, 100), seed=8, signed=signed), np.float64)
    kind = dict(block_size=block_size, codec=codec, signed=signed)
    codes, absmax = quantize(jnp.asarray(x, jnp.float32), **kind)
    back = dequantize(codes, absmax, **kind)
    table = oracles.levels(codec, signed)
    low, high = oracles.neighbours(oracles.normalize(x, absmax, block_size), codec, signed)
    half = (table[high] - table[low]) / 2
    if codec == "dynamic" and signed:
        # There is no -1: the negative end is short by up to 0.00703. And a negative value next
        # to zero takes the smallest negative level, a whole gap of 5.5e-7.
        half = np.where(low == high, 0.00704, np.where(table[high] == 0, 5.6e-7, half))
    bound = half * oracles.scale_of(absmax, x.shape, block_size)
    assert (abs(np.asarray(back) - x) <= bound * (1 + 1e-4) + 1e-6 * abs(x)).all()


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_state_stored_by_bitsandbytes_decodes_exactly(signed):
    # Its documented layout: value = qmap[code] * absmax[flat index // 256], whatever the shape. Its
    # codes ascend with the values, and the signed zero is code 127; here it is 0.
    rng = np.random.default_rng(9)
    qmap = oracles.bitsandbytes_map(signed)
    for shape in [(1000,), (5, 7, 29), (4, 512)]:
        codes = rng.integers(0, 256, shape).astype(np.uint8)
        codes.ravel()[:256] = np.arange(256)
        absmax = rng.lognormal(sigma=5, size=-(-codes.size // 256)).astype(np.float32)
        expected = qmap[codes.ravel()] * np.repeat(absmax, 256)[: codes.size]
        layout = absmax.reshape(oracles.absmax_shape(shape, 256))
        ours = codes - np.uint8(127) if signed else codes
        back = dequantize(ours, layout, codec="dynamic", signed=signed)
        ulps = np.abs(np.asarray(back).ravel() - expected) / np.spacing(np.abs(expected))
        # 2 ulp of the map (it varies as much between processors), times the scale: the product
        # keeps relative errors, but 2 ulp of a factor can be 4 of the product, rounded once more.
        assert ulps.max() <= 4
        assert (np.asarray(back).ravel()[expected == 0] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_input_dtypes(dtype):
    x = sample((5, 300), seed=6, dtype=dtype)
    codes, absmax = quantize(x)
    check_layout(x, codes, absmax, 256)
    check_nearest(x, codes, absmax, 256, "power", True)
    back = dequantize(codes, absmax, dtype=dtype)
    assert back.dtype == dtype
    # Decoded in float32 and rounded once.
    expected = dequantize(codes, absmax).astype(dtype)
    np.testing.assert_array_equal(back.astype(jnp.float32), expected.astype(jnp.float32))


def test_float64_input_and_output():
    with jax.enable_x64(True):
        x = sample((5, 300), seed=7, dtype=np.float64)
        codes, absmax = quantize(x)
        assert codes.dtype == jnp.uint8 and absmax.dtype == jnp.float32
        # The scale is the rounded maximum, so y may pass 1 by half an ulp.
        np.testing.assert_allclose(absmax, oracles.block_absmax(x, 256), rtol=2.0**-24)
        check_nearest(x, codes, absmax, 256, "power", True)
        assert dequantize(codes, absmax, dtype=jnp.float64).dtype == jnp.float64
