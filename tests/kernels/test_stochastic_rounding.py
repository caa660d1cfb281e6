"""Rounding with a seed: unbiased in the value, reproducible, and random in every other respect.

What decays by a step smaller than half a gap would be held in place by rounding to nearest;
rounding up with the right probability lets it move. Bounds are in standard deviations: 5 for one
statistic, 6 where a test looks at thousands. Seeds are fixed, so nothing is flaky.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.arithmetic.hashing import uniform, uniform_at
from tests import oracles
from tests.kernels.codec_judge import KINDS, decode, dequantize, encode, quantize

SIZE = 2**18


def between(codec, signed, fraction, interval=None):
    """Values at `fraction` of the way between neighbouring levels, behind a leading 1."""
    codes = oracles.written(codec, signed)
    table = oracles.levels(codec, signed)[codes]
    if interval is None:
        usable = np.arange(codes.size - 1)
        if codec == "dynamic" and signed:
            # The sign rule outranks the probability: no negative value is stored as zero.
            usable = usable[codes[usable + 1] != 0]
        interval = np.resize(usable, fraction.size)
    low, high = table[interval], table[interval + 1]
    y = np.concatenate([[1.0], low + fraction * (high - low)]).astype(np.float32)
    # The fraction that float32 could express.
    fraction = np.clip((y[1:] - low) / (high - low), 0, 1)
    return y, interval, fraction


def went_up(y, interval, codec, signed, seed):
    up = oracles.ranks(encode(y, codec, signed, seed=seed)[1:], codec, signed) - interval
    # A value that float32 put on a level may touch the next interval.
    assert np.isin(up, [0, 1]).mean() > 0.999
    return up


@KINDS
def test_only_neighbouring_codes_are_chosen(codec, signed):
    rng = np.random.default_rng(0)
    small = rng.choice([-1, 1], SIZE) * 10 ** rng.uniform(-25, 0, SIZE)
    y = np.concatenate([[1.0, 0.0], small, rng.uniform(-1, 1, SIZE)])
    y = (y if signed else abs(y)).astype(np.float32)
    codes = encode(y, codec, signed, seed=7)
    # Slack: two roundings in y and two in the level, relative to y.
    slack = 4 * np.spacing(abs(y)).astype(np.float64)
    allowed = oracles.admissible(y.astype(np.float64), codes, codec, signed, slack)
    assert allowed.all(), list(zip(y[~allowed], codes[~allowed], strict=True))[:5]


@KINDS
def test_an_exact_level_stays(codec, signed):
    codes = np.tile(oracles.written(codec, signed)[::-1], 100)
    values = decode(codes, codec, signed)
    for seed in (0, 1, 2**31 - 1):
        np.testing.assert_array_equal(encode(values, codec, signed, seed=seed), codes)


@KINDS
def test_rounding_is_unbiased_between_every_two_levels(codec, signed):
    rng = np.random.default_rng(1)
    y, interval, fraction = between(codec, signed, rng.uniform(0, 1, 4 * SIZE))
    error = went_up(y, interval, codec, signed, seed=11) - fraction
    variance = fraction * (1 - fraction)
    # In the value domain: by interval, by the distance from the lower level, and by sign, as an
    # error in the magnitude would cancel between the signs.
    negative = (interval < oracles.ranks(0, codec, signed)).astype(int)
    for group in (interval, (fraction * 64).astype(int) + 65 * negative, negative):
        z = np.bincount(group, error) / np.sqrt(np.bincount(group, variance) + 1e-12)
        assert abs(z).max() < 5, z


@pytest.mark.parametrize("fraction", [0.001, 0.03, 0.97])
def test_small_probabilities_are_kept(fraction):
    # A second moment that decays by 0.1 % needs a few percent of a gap.
    y, interval, exact = between("power", False, np.full(4 * SIZE, fraction), 200)
    up = went_up(y, interval, "power", False, seed=3)
    z = (up - exact).sum() / np.sqrt((exact * (1 - exact)).sum())
    assert abs(z) < 5


@pytest.mark.parametrize("codec", oracles.CODECS)
def test_second_moments_never_round_to_zero(codec):
    y = np.concatenate([[1, 0], np.geomspace(2e-38, 1e-3, SIZE)]).astype(np.float32)
    codes = encode(y, codec, False, seed=5, keep_nonzero=True)
    assert codes[1] == 0
    assert (codes[2:] != 0).all()


def test_the_seed_decides_the_bits():
    y, *_ = between("power", False, np.full(SIZE, 0.5))
    first, again, other = (encode(y, "power", False, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    # Two independent fair coins per element.
    assert abs((first != other).mean() - 0.5) < 5 * 0.5 / np.sqrt(SIZE)


def test_the_shape_does_not_decide_the_bits():
    rng = np.random.default_rng(2)
    x = rng.lognormal(sigma=3, size=8 * 4 * 256 * 2).astype(np.float32)
    expected, scales = quantize(x, signed=False, seed=9)
    for shape in [(64, 256), (8, 8, 256), (2, 4, 4, 512), (128, 128), (16384, 1)]:
        codes, absmax = quantize(x.reshape(shape), signed=False, seed=9)
        np.testing.assert_array_equal(codes.reshape(-1), expected)
        np.testing.assert_array_equal(absmax.reshape(-1), scales)


def test_numbers_go_on_beyond_two_to_the_32():
    """A tensor of more elements does not begin anew."""
    index = jnp.arange(64, dtype=jnp.uint32)
    first, *others = (
        uniform_at(jnp.uint32(5), index, high) for high in (None, jnp.uint32(1), jnp.uint32(2))
    )
    seen = [np.asarray(first), *(np.asarray(x) for x in others)]
    for a, b in itertools.combinations(seen, 2):
        assert (a != b).mean() > 0.9


def test_numbers_are_further_from_0_and_1_than_a_rounding_error():
    """Or one of them moves a value from the level that it lies on."""
    numbers = np.asarray(uniform(jnp.uint32(5), (2**20,)))
    assert numbers.min() >= 2.0**-18 and numbers.max() <= 1 - 2.0**-18


def _coins(seed):
    """Rounding decisions at probability 1/2, as +1 and -1."""
    y, interval, _ = between("power", False, np.full(SIZE, 0.5), 200)
    return 2.0 * went_up(y, interval, "power", False, seed) - 1


def _correlations(a, b):
    """Circular correlation of two sequences at every lag, in standard deviations."""
    spectrum = np.fft.rfft(a - a.mean()) * np.conj(np.fft.rfft(b - b.mean()))
    return np.fft.irfft(spectrum, a.size) / np.sqrt(a.size)


def test_elements_and_steps_are_uncorrelated():
    coins = [_coins(seed) for seed in (100, 101, 102, 100 + 2**16)]
    # Largest of 2**18 normal deviates: expected 5, above 6.5 once in 50,000 times.
    assert abs(_correlations(coins[0], coins[0])[1:]).max() < 6.5
    for other in coins[1:]:
        assert abs(_correlations(coins[0], other)).max() < 6.5


def test_consecutive_decisions_are_equally_likely_in_every_pattern():
    # Chi-square over the 256 patterns of 8 neighbours, and of one element over 8 steps:
    # 255 degrees of freedom, standard deviation sqrt(510), bound 5 of them.
    steps = np.stack([_coins(seed)[: SIZE // 8] for seed in range(200, 208)], axis=1)
    for patterns in (_coins(300).reshape(-1, 8), steps):
        seen = np.bincount(((patterns > 0) << np.arange(8)).sum(axis=1), minlength=256)
        expected = len(patterns) / 256
        assert abs(((seen - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(510)


def test_a_decaying_average_does_not_drift():
    # 0.999 is the decay of LAMB's second moment; rounding to nearest would keep the sum too high.
    x = np.random.default_rng(4).lognormal(size=2**14)
    table = oracles.levels("power", False)
    codes, absmax = quantize(jnp.asarray(x, jnp.float32), signed=False, seed=999)
    exact, variance = oracles.decode(np.asarray(codes), absmax, 256, "power", False).sum(), 0.0
    for seed in range(50):
        old = dequantize(codes, absmax, signed=False) * 0.999
        codes, absmax = quantize(old, signed=False, seed=seed)
        scale = oracles.scale_of(absmax, x.shape, 256)
        y = oracles.normalize(np.asarray(old, np.float64), absmax, 256)
        low, high = oracles.neighbours(y, "power", False)
        variance += ((y - table[low]) * (table[high] - y) * scale**2).sum()
        exact = exact * 0.999
    stored = oracles.decode(np.asarray(codes), absmax, 256, "power", False).sum()
    assert abs(stored - exact) < 5 * np.sqrt(variance)
    assert 5 * np.sqrt(variance) < 0.003 * exact  # and that is a sharp bound
