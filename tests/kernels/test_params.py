"""Parameters of 16 bits: what is rounded at random, and what a residual keeps.

Judged in float64 by the table of all numbers of a dtype. Bounds of statistics are in standard
deviations: 5 for one of them, 6.5 for the largest of hundreds of thousands. Seeds are fixed.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.arithmetic import params
from pallas_kernels.arithmetic.dither import Dither
from pallas_kernels.arithmetic.hashing import bits_at, index_in
from pallas_kernels.arithmetic.pieces import GRAIN, Piece
from pallas_kernels.arithmetic.shards import Place
from tests import oracles
from tests.kernels.test_places import DIVIDED, places

DTYPES = pytest.mark.parametrize("dtype", list(oracles.EXPONENTS))
LARGEST = {"bfloat16": 3.3895313892515355e38, "float16": 65504.0}
LEAST_NORMAL = {"bfloat16": 2.0**-126, "float16": 2.0**-14}
NANS = (0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x7FC0FFFF)
"""Bits of NaN as additions return it, among them those of CPUs and GPUs."""
ALL_ONES = {"bfloat16": 0xFFFF0000, "float16": 0xFFFFE000}
"""Of a parameter that is NaN those with all bits set, in float32."""
ALL_BITS = np.arange(2**16, dtype=np.uint32) << 16


def inputs(dtype, tiny=True):
    """Float32 numbers of every kind that is finite, of both signs."""
    rng = np.random.default_rng(0)
    table = oracles.numbers_of_16_bits(dtype)
    edges = 2.0 ** np.arange(-30 if dtype == "float16" else -125, 15, 7)
    around = [np.nextafter(np.float32(edges), np.float32(to)) for to in (0, np.inf)]
    normal = np.float32(10.0 ** rng.uniform(-4, 4, 40))
    of_16_bits = np.float32(rng.choice(table[(table > LEAST_NORMAL[dtype])], 10))
    least = LEAST_NORMAL[dtype]
    near = np.float32(least) * np.float32(rng.uniform(0, 2, 40)) if tiny else []
    largest = np.float32(LARGEST[dtype]) * np.float32([0.999, 1, 1 + 2.0**-13])
    x = np.concatenate([[0.0], np.float32(edges), *around, normal, of_16_bits, near, largest])
    x = np.float32(x)[np.isfinite(np.float32(x))]
    return np.concatenate([x, -x])


def stochastic(x, dtype, bits):
    return jax.jit(params.stochastic, static_argnums=1)(x, jnp.dtype(dtype), bits)


def compensated(x, dtype, bits):
    return jax.jit(params.compensated, static_argnums=1)(x, jnp.dtype(dtype), bits)


def joined(p, residual):
    return np.float64(jax.jit(params.joined)(p, residual))


def as_numbers(p, dtype):
    """Stored parameters in float64, infinity as it stands in the table."""
    table = oracles.numbers_of_16_bits(dtype)
    p = np.float64(p)
    return np.where(np.isinf(p), np.sign(p) * table[-1], p)


# ------------------------------------------------------------------------------------ stochastic


@DTYPES
def test_of_all_random_numbers_the_right_share_rounds_up(dtype):
    x = inputs(dtype)
    low, high = oracles.beside(np.float64(x), dtype)
    exact = np.divide(x - low, high - low, out=np.zeros(x.shape), where=high > low)
    up = np.zeros(x.size)
    for i, value in enumerate(x):
        p = as_numbers(stochastic(np.full(ALL_BITS.shape, value), dtype, ALL_BITS), dtype)
        assert np.isin(p, [low[i], high[i]]).all(), (value, low[i], high[i], np.unique(p))
        up[i] = np.mean(p == high[i]) if high[i] > low[i] else 0
    # A float32 number has 16 bits more than one of bfloat16, and 13 more than a normal one of
    # float16: that many random ones are exact. Below that, the share is one of 2**13.
    slack = np.where((dtype == "float16") & (np.abs(x) < 2.0**-14), 2.0**-14, 0)
    assert (np.abs(up - exact) <= slack).all()


@DTYPES
def test_what_is_not_finite_stays_so_whatever_its_bits(dtype):
    nans = np.array([*NANS, ALL_ONES[dtype]], np.uint32).view(np.float32)
    bits = ALL_BITS[:: 2**8, None] | np.uint32(0xFFFFFF)
    x = np.broadcast_to(nans, (len(bits), nans.size))
    assert np.isnan(np.float64(stochastic(x, dtype, np.broadcast_to(bits, x.shape)))).all()
    p, residual = compensated(x, dtype, np.broadcast_to(bits, x.shape))
    assert np.isnan(np.float64(p)).all() and np.isnan(joined(p, residual)).all()
    for infinity in np.float32([np.inf, -np.inf]):
        x = np.full(ALL_BITS.shape, infinity)
        assert (np.float64(stochastic(x, dtype, ALL_BITS)) == infinity).all()
        p, residual = compensated(x, dtype, ALL_BITS)
        assert (np.float64(p) == infinity).all() and (joined(p, residual) == infinity).all()


@pytest.mark.parametrize("value", [65536.0, -70_000.0, 1e9, -3e38])
def test_what_float16_cannot_hold_becomes_infinite(value):
    x, bits = np.full(256, value, np.float32), ALL_BITS[:: 2**8]
    p, residual = compensated(x, "float16", bits)
    for out in (stochastic(x, "float16", bits), p, joined(p, residual)):
        assert (np.float64(out) == np.sign(value) * np.inf).all()


def random_bits(step, leaf=7, size=2**20, shape=None):
    index = index_in((size,) if shape is None else shape)
    return bits_at(Dither(jnp.uint32(step), jnp.uint32(leaf)).key(), *index)


@DTYPES
def test_the_mean_of_a_million_elements_is_exact(dtype):
    rng = np.random.default_rng(1)
    x = np.float32(rng.choice([-1, 1], 2**20) * 2.0 ** rng.uniform(-20, 10, 2**20))
    p = np.float64(stochastic(x, dtype, random_bits(step=3)))
    low, high = oracles.beside(np.float64(x), dtype)
    error, variance = p - x, (x - low) * (high - x)
    gap = np.where(high > low, high - low, 1)
    where = (x - low) / gap
    groups = np.zeros(x.size, int), np.int64(x < 0), np.int64(32 * where), np.int64(np.log2(abs(x)))
    for group in groups:
        group = group - group.min()
        # In gaps, so that large numbers do not drown the others.
        z = np.bincount(group, error / gap) / np.sqrt(np.bincount(group, variance / gap**2) + 1e-9)
        assert abs(z).max() < 5, z


def coins(step, leaf=7, size=2**18):
    """Decisions at one half, as +1 and -1."""
    x = np.full(size, 1 + 2.0**-8, np.float32)
    up = np.float64(stochastic(x, "bfloat16", random_bits(step, leaf, size))) > 1
    return 2.0 * up - 1


def correlations(a, b):
    """Circular correlation of two sequences at every lag, in standard deviations."""
    spectrum = np.fft.rfft(a - a.mean()) * np.conj(np.fft.rfft(b - b.mean()))
    return np.fft.irfft(spectrum, a.size) / np.sqrt(a.size)


def test_elements_steps_and_leaves_are_uncorrelated():
    first = coins(100)
    # Largest of 2**18 normal deviates: expected 5, above 6.5 once in 50,000 times.
    assert abs(correlations(first, first)[1:]).max() < 6.5
    for other in (coins(101), coins(102), coins(100, leaf=8), coins(101, leaf=7 * 2**20)):
        assert abs(correlations(first, other)).max() < 6.5


@pytest.mark.parametrize("between", ["neighbours", "eighths", "rows", "steps", "leaves"])
def test_pairs_of_numbers_are_independent(between):
    """Chi-square of the upper 4 bits of two numbers: 255 degrees of freedom, 5 deviations."""
    bits = np.asarray(random_bits(5)) >> 28
    distance = {"neighbours": 1, "eighths": 8, "rows": 1024}.get(between)
    if distance is None:
        other = dict(step=6) if between == "steps" else dict(step=5, leaf=8)
        pairs = bits, np.asarray(random_bits(**other)) >> 28
    else:
        pairs = bits[:-distance], bits[distance:]
    seen = np.bincount(16 * pairs[0] + pairs[1], minlength=256)
    expected = len(pairs[0]) / 256
    assert abs(((seen - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(510)


def test_a_random_walk_spreads_as_one():
    """Steps that follow each other: the variance of a sum of 64 is 64 variances."""
    total = sum(coins(step, size=2**16) for step in range(64))
    # Of a sum of 64 coins the fourth moment is about 3 * 64**2, so its square deviates by
    # sqrt(2) * 64.
    assert abs(np.mean(total**2) - 64) < 5 * np.sqrt(2) * 64 / np.sqrt(2**16)


# ------------------------------------------------------------- which number an element is given


def indices(*args):
    """The index of every element as a Python number."""
    index, high = index_in(*args)
    high = 0 if high is None else np.asarray(high).astype(object)
    return np.asarray(index).astype(object) + high * 2**32


@pytest.mark.parametrize("shape", [(), (1,), (300,), (7, 300), (4, 3, 257), (2, 256), (5, 1, 2, 9)])
def test_an_element_is_known_by_its_place_in_the_flattened_tensor(shape):
    expected = np.arange(math.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(indices(shape), expected)


ODD = [
    ((12, 7), (3, 1), 0),
    ((6, 10, 3), (1, 2, 1), 0),
    ((8, 12), (2, 4), 0),
    ((9, 2, 5), (3, 2, 1), 0),
]


@pytest.mark.parametrize("shape, shards, _", DIVIDED + ODD)
def test_an_element_of_a_shard_has_the_number_that_it_has_in_its_tensor(shape, shards, _):
    expected = np.arange(math.prod(shape)).reshape(shape)
    for place, index in places(shape, shards):
        np.testing.assert_array_equal(indices(place.shard_shape, place), expected[index])


@pytest.mark.parametrize("block", [32, 256, 1024])
@pytest.mark.parametrize("size", [3 * GRAIN, 2 * GRAIN + 77])
def test_an_element_of_a_piece_has_the_number_that_it_has_in_its_leaf(size, block):
    begin = 1
    rest = size - begin * GRAIN
    piece = Piece(jnp.int32(begin), rest, size, block)
    view = (rest // block, block) if size % block == 0 else (rest,)
    expected = np.arange(begin * GRAIN, size).reshape(view)
    np.testing.assert_array_equal(indices(view, None, piece), expected)


@pytest.mark.parametrize(
    "shape, shards",
    [((4, 512, 1024), (1, 2, 1)), ((8, 512, 96), (2, 1, 1)), ((6, 512, 99), (1, 2, 1))],
)
def test_an_element_of_a_piece_of_a_shard_has_it_too(shape, shards):
    number = np.arange(math.prod(shape)).reshape(shape)
    for place, index in places(shape, shards):
        mine = number[index].reshape(-1)
        piece = Piece(jnp.int32(1), mine.size - GRAIN, mine.size, 32)
        found = indices((mine.size - GRAIN,), place, piece)
        np.testing.assert_array_equal(found, mine[GRAIN:])


LARGE = [
    ((2**17, 2**17), (3, 5), (2**17 - 3, 2**16 + 9)),
    ((70_000, 301, 407), (2, 7, 11), (69_998, 290, 390)),
    ((2**20, 2**14), (2, 512), (2**20 - 2, 2**13)),
]


@pytest.mark.parametrize("shape, shard, begins", LARGE)
def test_numbers_go_on_beyond_two_to_the_32_in_a_shard(shape, shard, begins):
    """Of tensors that no memory holds: a few elements near the end."""
    place = Place(shape, shard, tuple(map(jnp.uint32, begins)))
    axes = np.ix_(*(np.arange(b, b + n).astype(object) for b, n in zip(begins, shard, strict=True)))
    expected = 0
    for n, axis in zip(shape, axes, strict=True):
        expected = expected * n + axis
    np.testing.assert_array_equal(indices(shard, place), np.broadcast_to(expected, shard))


@pytest.mark.parametrize("block", [32, 256, 4096])
def test_numbers_go_on_beyond_two_to_the_32_in_a_piece(block):
    grain = 2**16 + 3
    piece = Piece(jnp.int32(grain), 3 * block, 2**34, block)
    expected = grain * GRAIN + np.arange(3 * block).astype(object).reshape(3, block)
    np.testing.assert_array_equal(indices((3, block), None, piece), expected)
    # The same of a shard of it: the upper half of every of 2**5 rows of 2**30 elements.
    place = Place((2**5, 2**30), (2**5, 2**29), (None, jnp.uint32(2**29)))
    number = 17 * 2**29 // GRAIN + 5  # in row 17
    piece = Piece(jnp.int32(number), 3 * block, 2**34, block)
    begin = 17 * 2**30 + 2**29 + 5 * GRAIN
    np.testing.assert_array_equal(
        indices((3, block), place, piece),
        begin + np.arange(3 * block).astype(object).reshape(3, block),
    )


# ----------------------------------------------------------------------------------- compensated


@DTYPES
def test_a_parameter_and_its_residual_are_within_a_unit_and_unbiased(dtype):
    x = inputs(dtype)
    x = x[np.abs(x) <= LARGEST[dtype]]
    if dtype == "bfloat16":
        x = x[(x == 0) | (np.abs(x) > 2.0**-126)]  # zero has no residual, nor what is stored as it
    x_of_all, dithers = np.broadcast_arrays(x, np.arange(256, dtype=np.uint32)[:, None] << 24)
    p, residual = compensated(x_of_all, dtype, dithers)
    unit, values = oracles.unit_of_residual(np.float64(p), dtype), joined(p, residual)
    assert (np.abs(values - x) < unit).all()
    # Of a float32 number, 8 bits are below a residual of bfloat16 and 5 below one of float16, so
    # 256 dithers say all of them. Of numbers that are not normal in float16 there may be more.
    slack = np.where((dtype == "float16") & (np.abs(x) < 2.0**-14), unit[0] / 512, 0)
    assert (np.abs(values.mean(axis=0) - x) <= slack).all()
    # What is stored is the number next to that value.
    low, high = oracles.beside(values, dtype)
    distance = np.minimum(values - low, high - values)
    assert (np.abs(values - as_numbers(p, dtype)) == distance).all()


@DTYPES
def test_what_is_stored_is_stored_again_as_it_is(dtype):
    """All numbers of 16 bits, with residuals up to half a gap."""
    exponent_bits, bits = oracles.EXPONENTS[dtype]
    infinity = (2**exponent_bits - 1) << bits
    p = np.arange(1, infinity - 1, dtype=np.uint16)  # what is beside the largest one may overflow
    p = np.concatenate([p, p | 0x8000]).view(jnp.dtype(dtype))
    for residual, dither in itertools.product(
        (-128, -127, -64, -1, 0, 1, 77, 127), (0, 0x9E000000)
    ):
        r = np.full(p.shape, residual, np.int8)
        value = joined(p, r)
        low, high = oracles.beside(value, dtype)
        # Below a power of two gaps are smaller in float16, whose residuals count in the value.
        nearest = np.abs(value - np.float64(p)) <= np.minimum(value - low, high - value)
        again = compensated(np.float32(value), dtype, np.full(p.shape, dither, np.uint32))
        np.testing.assert_array_equal(np.asarray(again[0])[nearest], p[nearest])
        np.testing.assert_array_equal(np.asarray(again[1])[nearest], r[nearest])
        assert nearest.mean() > 0.99


@DTYPES
def test_exact_zeros_are_zeros_without_a_residual(dtype):
    dithers = np.arange(256, dtype=np.uint32) << 24
    for zero in np.float32([0.0, -0.0]):
        p, residual = compensated(np.full(256, zero), dtype, dithers)
        assert not np.asarray(p).any() and not np.asarray(residual).any()


def test_a_parameter_that_was_set_to_zero_is_zero_whatever_its_residual():
    """Of float16 a residual beside zero is a number of its own, below 2**-25."""
    residual = np.arange(-128, 128).astype(np.int8)
    zeros = np.zeros(256, jnp.bfloat16)
    assert not joined(zeros, residual).any() and not joined(-zeros, residual).any()
    small = joined(np.zeros(256, np.float16), residual)
    np.testing.assert_array_equal(small, np.float64(residual) * 2.0**-32)


@DTYPES
@pytest.mark.parametrize("share", [1 / 16, 5 / 16, 7 / 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_steps_below_a_unit_lead_all_the_way_to_the_next_numbers(dtype, share, sign):
    """Past the middle between two numbers, where a residual changes its sign, and past a binade."""
    unit = oracles.unit_of_residual(np.float64(1.0), dtype)
    start = np.float32([1.0, 2 - 300 * unit, -1.0, 1.5, -2 + 300 * unit])
    blocks = jnp.arange(start.size, dtype=jnp.uint32)

    def body(i, carry):
        value = params.joined(*carry) + np.float32(sign * share * unit)  # exact in float32
        u = Dither(i.astype(jnp.uint32), jnp.uint32(9)).of_residuals(blocks)
        return params.compensated(value, jnp.dtype(dtype), u)

    first = params.compensated(start, jnp.dtype(dtype), jnp.zeros(start.size, jnp.uint32))
    end = joined(*jax.jit(lambda x: jax.lax.fori_loop(0, int(700 / share), body, x))(first))
    # Evenly spread numbers are right but for 2 units of 700 or so, which above 2 count double.
    np.testing.assert_allclose(end, start + 700 * sign * unit, rtol=0, atol=8 * unit)
