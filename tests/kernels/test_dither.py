"""Dither: the numbers that rounding turns at, and what rounding at them does to a value."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.arithmetic import ladders
from pallas_kernels.arithmetic.codecs import as_bytes, encode, get_codec
from pallas_kernels.arithmetic.dither import Dither, even_digits_for, fraction
from pallas_kernels.arithmetic.hashing import uniform
from pallas_kernels.arithmetic.ladders import NEAREST
from pallas_kernels.arithmetic.pieces import GRAIN, Piece
from pallas_kernels.tiled.ladders import for_kernel
from tests import oracles
from tests.kernels.codec_judge import KINDS
from tests.kernels.test_places import divided, places

SLOTS = pytest.mark.parametrize("slot", [0, 1, 2])


def name_of(leaf):
    """The number by which a leaf is known to `Dither`."""
    return jnp.uint32(zlib.crc32(leaf.encode()))


@functools.partial(jax.jit, static_argnums=2)
def fractions(dither, numbers, slot):
    return dither.fractions(slot, numbers)


# ------------------------------------------------------------------------------------ the numbers


def dither_of(step, leaf, decay=None):
    """`Dither` for slots that are moving averages with this decay; None: nothing is scrambled."""
    dither = Dither(jnp.asarray(step, jnp.uint32), name_of(leaf))
    return dither if decay is None else dither.scrambled((even_digits_for(decay),) * 3)


# With 3, 6, 9 and 23 even digits, and without scrambling.
DECAY = pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 0.9999, 1.0, None])


@SLOTS
@DECAY
@pytest.mark.parametrize("leaf", ["", "w", "['layers'][3]['kernel']"])
def test_fractions_are_the_documented_ones_bit_for_bit(slot, decay, leaf):
    for step in (1, 2, 1000, 2**31 - 1, 2**32 - 2, 2**32 - 1):
        dither = dither_of(step, leaf, decay)
        u = fractions(dither, dither.numbers(700, 32), slot)
        assert u.dtype == jnp.float32
        expected = oracles.dither(step, leaf, slot, (700, 32), 32, decay)[:, 0]
        np.testing.assert_array_equal(u, expected)


def test_fractions_of_late_blocks_are_the_documented_ones():
    """Number 2**32 - 1 is that of the last block that a leaf can have."""
    dither = Dither(jnp.uint32(5), jnp.uint32(0))
    first = 2**32 - 100
    numbers = dither.numbers(100, 256, jnp.uint32(first))
    np.testing.assert_array_equal(numbers, first + np.arange(100, dtype=np.uint64))
    # The offsets of blocks go round once in 2**32, and so those before the first one come last.
    phases = (5 * 0x9E3779B9 + 0xC13FA9A9 * np.arange(-100, 0).astype(object)) % 2**32
    expected = [(int(phase) // 2**9 + 0.5) / 2**23 for phase in phases]
    np.testing.assert_array_equal(fractions(dither, numbers, 0), expected)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1 - 1e-6, 1.0])
def test_a_traced_decay_has_as_many_even_digits_as_a_number(decay):
    traced = jax.jit(even_digits_for)(jnp.float32(decay))
    assert traced.dtype == even_digits_for(decay).dtype == jnp.uint32
    assert traced == even_digits_for(decay)


@SLOTS
@DECAY
def test_fractions_lie_strictly_between_0_and_1(slot, decay):
    dither = dither_of(jnp.arange(1, 2**16, dtype=jnp.uint32), "w", decay)
    u = np.asarray(fractions(dither, jnp.uint32(0), slot))
    assert u.min() > 0 and u.max() < 1
    # And at the ends: all bits clear, all bits set.
    ends = fraction(jnp.array([0, 2**32 - 1], jnp.uint32))
    np.testing.assert_array_equal(ends, np.float32([2.0**-24, 1 - 2.0**-24]))


def discrepancy(u):
    """The largest distance between the share of numbers below `x` and `x`, over all `x`."""
    u = np.sort(np.asarray(u, np.float64))
    n = np.arange(u.size)
    return max((np.abs(u - n / u.size)).max(), (np.abs(u - (n + 1) / u.size)).max())


def runs(steps, decay):
    """`Dither` for some runs of so many steps."""
    for leaf, first in (("w", 1), ("b", 12_345), ("abc", 777), ("w", 2**32 - steps)):
        yield dither_of(jnp.arange(steps, dtype=jnp.uint32) + jnp.uint32(first), leaf, decay)


@SLOTS
@pytest.mark.parametrize("decay, digits", [(0.9, 3), (0.999, 6), (0.9999, 9), (None, 32)])
@pytest.mark.parametrize("steps", [64, 1000, 2**16])
def test_steps_are_evenly_spread(slot, steps, decay, digits):
    # That of a Weyl sequence is of the order of log(N) / N. Where digits are scrambled, the numbers
    # within an interval are as good as random: N / 2**digits of them, five standard deviations.
    bound = 1 + math.log2(steps) / 2 + 5 * math.sqrt(steps / 2**digits / 4)
    for dither in runs(steps, decay):
        assert discrepancy(fractions(dither, jnp.uint32(3), slot)) < bound / steps


@SLOTS
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("steps", [64, 1000, 2**16])
def test_every_eighth_gets_its_share_of_steps(slot, steps, decay):
    for dither in runs(steps, decay):
        u = np.asarray(fractions(dither, jnp.uint32(3), slot))
        seen = np.bincount((u * 8).astype(int), minlength=8)
        # Of the order of log(N). Random numbers would be off by sqrt(N / 8): 3 of 64, 90 of 65,536.
        assert abs(seen - steps / 8).max() <= 1 + math.log2(steps) / 4


@SLOTS
@pytest.mark.parametrize("decay", [0.9, 0.999, None])
def test_blocks_are_evenly_spread_in_every_step(slot, decay):
    for step in (1, 77, 2**32 - 1):
        dither = dither_of(step, "w", decay)
        for count in (64, 1024, 2**15):
            u = fractions(dither, dither.numbers(count, 256), slot)
            # Numbers are scrambled alike, and so within binary parts of the range only: as even as
            # a Weyl sequence, and twelve times more so than random numbers at the end.
            assert discrepancy(u) < math.log2(count) / count


# --------------------------------------------------------------------------- the numbers of blocks


@divided
def test_shards_have_the_numbers_of_the_tensor(shape, shards, block):
    whole = np.arange(math.prod(shape)).reshape(shape) // block
    for place, index in places(shape, shards):
        expected = whole[index].reshape(-1, block)[:, 0]
        dither = Dither(jnp.uint32(1), jnp.uint32(2), place=place)
        np.testing.assert_array_equal(dither.numbers(len(expected), block), expected)
        # From any block of the shard on.
        later = dither.numbers(len(expected) - 1, block, jnp.uint32(1))
        np.testing.assert_array_equal(later, expected[1:])


@pytest.mark.parametrize("block", [32, 256, 1024])
def test_pieces_have_the_numbers_of_the_leaf(block):
    dither = Dither(jnp.uint32(1), jnp.uint32(2))
    for start in (0, 1, 17, 2**14):
        piece = Piece(jnp.int32(start), GRAIN, 2**15 * GRAIN, block)
        numbers = dither.numbers(GRAIN // block, block, piece.first_block)
        expected = np.arange(start * GRAIN // block, (start + 1) * GRAIN // block)
        np.testing.assert_array_equal(numbers, expected)


@divided
def test_without_block_size_every_part_is_of_block_0(shape, shards, block):
    for place, _ in places(shape, shards):
        dither = Dither(jnp.uint32(1), jnp.uint32(2), place=place)
        assert dither.numbers(1, None).tolist() == [0]


# ----------------------------------------------------------------------------- rounding at a number

FRACTIONS = (2.0**-24, 1e-3, 0.1, 0.5, 0.9, 1 - 2.0**-23)


def ladder_of(where, codec, signed):
    codec = get_codec(codec, signed)
    return for_kernel(codec) if where == "kernels" else codec


@functools.partial(jax.jit, static_argnums=(0, 3))
def _encode(codec, x, u, keep_nonzero, absmax):
    prepared = codec.prepare(absmax, u)
    prepared = tuple(jnp.broadcast_to(y, x.shape) for y in prepared)
    return as_bytes(encode(codec, x, prepared, keep_nonzero=keep_nonzero)[0])


def rounded(codec, x, u, absmax=1.0, keep_nonzero=False):
    """Codes of a block with this largest magnitude, rounded at `u`."""
    arrays = jnp.asarray(x, jnp.float32), jnp.float32(u), keep_nonzero, jnp.float32(absmax)
    return np.asarray(_encode(codec, *arrays))


def sweep(codec, signed, u):
    """Every turn with its neighbours, every level, a grid, tiny numbers and the largest one."""
    table = oracles.levels(codec, signed)
    table = np.sort(table[table >= 0])
    turns = (table[:-1] + float(u) * np.diff(table)).astype(np.float32)
    steps = np.arange(-16, 17, dtype=np.float32)
    beside = (turns[:, None] + steps * np.spacing(turns)[:, None]).ravel()
    # As far apart as the ladders may err.
    gaps = np.diff(table)[:, None] * np.array([-2e-3, -1.1e-3, -1.1e-4, 1.1e-4, 1.1e-3, 2e-3])
    apart = (turns[:, None] + gaps).ravel()
    tiny = np.geomspace(1e-37, 1e-3, 20_000)
    grid = np.linspace(0, 1, 100_000)
    y = np.concatenate([[0.0, 1.0], table, beside, apart, tiny, grid]).astype(np.float32)
    y = np.clip(y, 0, 1)
    return np.concatenate([y, -y]) if signed else y


def share(where, codec, signed, y):
    """What share of the gap a ladder may be off from where rounding turns, for every `y`."""
    if where == "xla":
        return 1e-4
    if codec == "power" and not signed:  # see `_climb_eighth_powers`
        first, fourth = ((rung / 255) ** 8 for rung in (1, 4))
        return np.select([y < first, y < fourth], [1, 0.025], 1e-3)
    return 1e-3


WHERE = pytest.mark.parametrize("where", ["xla", "kernels"])


@WHERE
@pytest.mark.parametrize("u", FRACTIONS)
@KINDS
def test_rounding_turns_at_the_fraction_of_every_gap(codec, signed, u, where):
    u = np.float32(u)
    y = sweep(codec, signed, u)
    codes = rounded(ladder_of(where, codec, signed), y, u)
    expected, distance, gap = oracles.turned(y, u, codec, signed)
    if codec == "dynamic" and signed:  # its negative values are never stored as zero
        expected = np.where((y < 0) & (expected == 0), np.uint8(255), expected)
    wrong = (codes != expected) & (distance > share(where, codec, signed, y) * gap)
    assert not wrong.any(), list(zip(y[wrong], codes[wrong], expected[wrong], strict=True))[:5]
    ranks = (oracles.ranks(x, codec, signed) for x in (codes, expected))
    assert np.abs(np.subtract(*ranks)).max() <= 1


@WHERE
@KINDS
def test_rounding_over_evenly_spread_fractions_is_unbiased(codec, signed, where):
    """Between every two levels, the mean of what is stored is the value."""
    table = np.sort(oracles.levels(codec, signed)[oracles.written(codec, signed)])
    if codec == "dynamic" and signed:
        table = table[table != -table[table > 0].min()]  # no negative value is stored as zero
        table = table[table >= 0]
    y = (table[:-1] + 0.37 * np.diff(table)).astype(np.float32)
    count = 1000
    u = (np.arange(count) + 0.5) / count
    ladder = ladder_of(where, codec, signed)
    values = oracles.levels(codec, signed)
    mean = np.mean([values[rounded(ladder, y, x)] for x in u], axis=0)
    # The fractions are a thousandth apart.
    bound = 1e-3 + share(where, codec, signed, y)
    assert (np.abs(mean - y) <= bound * np.diff(table)).all()


# ---------------------------------------------------------------------------------------- the ends


def _up(x):
    """The next float32 number, for positive ones."""
    return (x.view(jnp.int32) + 1).view(jnp.float32)


def err(monkeypatch, where, codec, sign):
    """Makes the functions by which a ladder is climbed err as much as they may, to one side."""
    if where == "kernels" and codec == "power":
        # The documented errors of a GPU's instructions.
        exact_log, exact_power = jnp.log2, jnp.exp2
        error = sign * 2.0**-22

        def log2(x):
            return exact_log(x) + error * jnp.maximum(jnp.abs(exact_log(x)), 1)

        monkeypatch.setattr(jnp, "log2", log2)
        monkeypatch.setattr(jnp, "exp2", lambda x: exact_power(x) * (1 + error))
    elif sign > 0:
        exact = ladders.inverse

        def high(absmax):
            scale = exact(absmax)
            return jnp.where(scale > 0, _up(scale), 0)

        monkeypatch.setattr(ladders, "inverse", high)


@WHERE
@pytest.mark.parametrize("sign", [1, -1], ids=["high", "low"])
@pytest.mark.parametrize("by", ["nearest", "dither", "seed"])
@KINDS
def test_functions_that_err_wrap_no_code(codec, signed, by, sign, where, monkeypatch):
    err(monkeypatch, where, codec, sign)
    ladder = ladder_of(where, codec, signed)
    # What a mantissa makes of a reciprocal that is rounded differs.
    absmax = np.random.default_rng(0).lognormal(sigma=20, size=20_000).astype(np.float32)
    absmax = absmax[(absmax > 1e-36) & (absmax < 2.0**126)]
    absmax = np.concatenate([absmax, np.float32([1, 3, 2.0**-126, 2.0**126])])
    x = jnp.asarray(absmax)
    many = {
        "nearest": [NEAREST],
        "dither": [jnp.full(x.shape, u, jnp.float32) for u in (2.0**-24, 1e-3, 0.9, 1 - 2.0**-24)],
        "seed": [uniform(jnp.uint32(seed), x.shape) for seed in (0, 1)],
    }[by]
    tops = {1: [128, 127] if codec == "dynamic" else [127, 126], -1: [129, 130]}
    for u in many:
        prepared = ladder.prepare(x, u)
        for half in (1, -1) if signed else (1,):
            codes, _ = encode(ladder, half * x, prepared)
            # The top, or the level below where `u` is nearly 1 and a logarithm errs downwards.
            allowed = tops[half] if signed else [255, 254]
            assert np.isin(as_bytes(codes), allowed).all()


@WHERE
@pytest.mark.parametrize("codec", oracles.CODECS)
def test_second_moments_are_zero_only_if_they_are(codec, where):
    """Also where the quotient with the scale is too small for float32."""
    ladder = ladder_of(where, codec, False)
    for largest, small in [(1.0, 1e-30), (1e28, 1e-12), (2.0**126, 2.0**-126), (1e30, 1e-37)]:
        for u in (*FRACTIONS, None):
            x = jnp.array([largest, small, 0.0], jnp.float32)
            prepared = ladder.prepare(
                jnp.full(3, largest), NEAREST if u is None else jnp.full(3, u)
            )
            codes, _ = encode(ladder, x, prepared, keep_nonzero=True)
            top, low, zero = as_bytes(codes).tolist()
            assert (low, zero) == (1, 0) and top >= 254
