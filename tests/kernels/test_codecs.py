"""Codes and levels: every code means its level, and every value gets the nearest one.

All data here lies in [-1, 1] with a 1 in front and one scale for the whole tensor, so that the
scale is exactly 1 and a value is its own normalized value.
"""

import numpy as np
import pytest

from tests import oracles
from tests.kernels.codec_judge import (
    KINDS,
    decode,
    encode,
    level_error,
    quantize,
)

TINY = float(np.finfo(np.float32).tiny)


def sweep(codec, signed):
    """1.2 million float32 values: a grid, every midpoint with its surroundings, tiny numbers."""
    table = oracles.levels(codec, signed)[oracles.written(codec, signed)]
    middles = ((table[1:] + table[:-1]) / 2).astype(np.float32)
    steps = np.arange(-16, 17, dtype=np.float32)
    beside = (middles[:, None] + steps * np.spacing(middles)[:, None]).ravel()
    grid = np.linspace(-1, 1, 800_000, dtype=np.float32)
    small = np.geomspace(TINY, 1, 200_000, dtype=np.float32)
    y = np.concatenate([[1.0, 0.0], grid, beside, middles * 0.99999, small, -small])
    return np.clip(y if signed else np.abs(y), -1, 1).astype(np.float32)


@KINDS
def test_every_code_decodes_to_its_level(codec, signed):
    codes = np.arange(256).astype(np.uint8)
    level = oracles.levels(codec, signed)
    bound = level_error(codec, signed) * abs(level)
    if codec == "dynamic":  # stricter: ulps of the value
        bound = 2 * np.spacing(abs(level).astype(np.float32)).astype(np.float64)
    bound[level == 0] = 0
    for scale in (1.0, 2.0**-40, 2.0**60):
        assert (abs(decode(codes, codec, signed, scale) - level * scale) <= bound * scale).all()


@KINDS
def test_quantize_picks_the_nearest_level(codec, signed):
    y = sweep(codec, signed)
    codes = encode(y, codec, signed)
    assert y.size > 1_000_000 and codes.dtype == np.uint8
    excess, gap = oracles.nearest_excess(y, codes, codec, signed)
    # A tie is where float32 cannot tell the two distances apart: with y and the level each a few
    # roundings off, that is some 1e-7 of y, and no gap is below 1/255 of y (linear, y = 1).
    wrong = excess > 1e-4 * gap
    assert not wrong.any(), list(zip(y[wrong], codes[wrong], strict=True))[:5]
    assert set(codes.tolist()) == set(oracles.written(codec, signed).tolist())


@KINDS
def test_subnormal_values_are_next_to_zero(codec, signed):
    # XLA may flush them to zero, so the dynamic map's sign rule need not see their sign.
    y = np.concatenate([[1], np.geomspace(1e-45, TINY, 1000)]).astype(np.float32)
    for sign in [1, -1] if signed else [1]:
        codes = encode(np.where(y == 1, 1, sign * y), codec, signed)[1:]
        assert np.isin(codes, [255, 0] if sign < 0 else [0]).all()


@pytest.mark.parametrize("smallest", [1e-30, 1e-12, 1e-7, 2.7e-7])
def test_dynamic_signed_keeps_the_sign_of_negative_values(smallest):
    codes = encode([1.0, -smallest, smallest, 0.0], "dynamic", True)
    np.testing.assert_array_equal(codes, [128, 255, 0, 0])


@KINDS
def test_levels_survive_a_round_trip(codec, signed):
    codes = oracles.written(codec, signed)[::-1]
    for scale in (1.0, 0.0123, 3e-18, 7e25):
        values = decode(codes, codec, signed, scale).astype(np.float32)
        again, absmax = quantize(values, block_size=None, codec=codec, signed=signed)
        np.testing.assert_array_equal(again, codes)
        # The level of the largest code is exactly 1, but XLA may multiply a level's last factor and
        # the scale first (that of jax 0.11.2 does), which rounds twice.
        np.testing.assert_allclose(absmax, np.float32([scale]), rtol=2 * 2.0**-24)


@KINDS
def test_ends_of_the_range_are_levels_where_the_codec_has_them(codec, signed):
    ends = np.float32([1, -1, 0]) if signed else np.float32([1, 1, 0])
    values = decode(encode(ends, codec, signed), codec, signed)
    if codec == "dynamic" and signed:
        # bitsandbytes' map has no -1, and its largest level below 1 is 0.99296875.
        np.testing.assert_allclose(values, [1, -0.99296875, 0], rtol=2e-7)
    else:
        np.testing.assert_array_equal(values, ends)
