"""A shard is stepped as the part of the whole tensor that it is."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.arithmetic.blocks import absmax_shape
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.dither import Dither
from pallas_kernels.arithmetic.rules import LAMB
from pallas_kernels.arithmetic.shards import Place, keeps_blocks
from pallas_kernels.arithmetic.step import Spec, ratio
from pallas_kernels.xla import step as xla
from tests import oracles
from tests.kernels.interpreted import INTERPRET, interpreted_step, mosaic
from tests.steps import arrays_of, leaf_of, on_arrays, scalars_of

# (shape, shards along every axis, block size)
DIVIDED = [
    ((1024,), (4,), 256),
    ((16, 512), (4, 1), 256),
    ((16, 512), (1, 2), 256),
    ((16, 1024), (4, 2), 256),
    ((4, 8, 512), (1, 4, 2), 256),
    ((4, 8, 512), (2, 1, 1), 256),
    ((4, 8, 128), (2, 2, 2), 64),
    ((2, 4, 6, 64), (1, 2, 3, 1), 32),
    ((16, 2048), (2, 2), 1024),
    ((64, 48), (4, 1), 256),  # blocks straddle rows
    ((32, 2, 24), (2, 1, 1), 32),
]
divided = pytest.mark.parametrize("shape, shards, block", DIVIDED)


def places(shape, shards):
    """Every shard: its `Place`, and the index of it in an array."""
    lengths = tuple(n // k for n, k in zip(shape, shards, strict=True))
    for at in itertools.product(*map(range, shards)):
        begins = [i * n for i, n in zip(at, lengths, strict=True)]
        offsets = tuple(
            None if k == 1 else jnp.uint32(b) for b, k in zip(begins, shards, strict=True)
        )
        index = tuple(slice(b, b + n) for b, n in zip(begins, lengths, strict=True))
        yield Place(shape, lengths, offsets), index


@divided
def test_blocks_have_their_number_in_the_tensor(shape, shards, block):
    """By brute force: which block every element of a shard is in."""
    size = math.prod(shape)
    number = np.arange(size).reshape(shape) // block
    for place, index in places(shape, shards):
        assert keeps_blocks(shape, place.shard_shape, block)
        expected = number[index].reshape(-1, block)
        assert (expected == expected[:, :1]).all()
        here = jnp.arange(len(expected), dtype=jnp.uint32)
        np.testing.assert_array_equal(place.block(here, block), expected[:, 0])


@pytest.mark.parametrize(
    "shape, shard, block",
    [
        ((16, 512), (16, 128), 256),
        ((16, 384), (16, 128), 256),
        ((64, 48), (2, 48), 256),
        ((64, 48), (16, 24), 256),
        ((2, 8, 48), (2, 4, 48), 64),
    ],
)
def test_shards_that_cut_blocks(shape, shard, block):
    assert not keeps_blocks(shape, shard, block)
    assert keeps_blocks(shape, shape, block) and keeps_blocks(shape, shard, None)


def test_a_place_beyond_two_to_the_32():
    """Offsets whose products do not fit in 32 bits, as those of a large stack of layers."""
    place = Place((80, 8192, 28672), (80, 1024, 3584), (None, jnp.uint32(7168), jnp.uint32(25088)))
    row, column = 79 * 1024 + 1023, 13
    expected = (79 * 8192 + 7168 + 1023) * 112 + 25088 // 256 + column
    assert int(place.block(jnp.uint32(row * 14 + column), 256)) == expected
    assert expected * 256 > 2**32


SPEC = Spec(LAMB, (get_codec("power", True), get_codec("power", False)), 256, "decoupled", "params")
DITHER = Dither(jnp.uint32(3), jnp.uint32(5))
SCALARS = scalars_of(LAMB, jnp.float32(3), weight_decay=0.1, step_size=-1e-2)


def leaf(shape):
    rng = np.random.default_rng(0)
    g, p = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    written = (oracles.written(codec.name, codec.signed) for codec in SPEC.codecs)
    slots = tuple(jnp.asarray(rng.choice(codes, shape)) for codes in written)
    scales = absmax_shape(shape, 256)
    return g, p, slots, tuple(jnp.asarray(rng.uniform(0.5, 1, scales), jnp.float32) for _ in slots)


def apart(step, shape, shards):
    """LAMB's step of every shard, with a norm of all: its results, as of the whole leaf."""
    arrays = leaf(shape)

    def shard(x, index):
        if x.shape == shape:
            return x[index]
        scale = tuple(slice(i.start * n // m, i.stop * n // m)
                      for i, n, m in zip(index, x.shape, shape, strict=False))  # fmt: skip
        return x[scale]

    moments, apply = jax.jit(step.moments), jax.jit(step.apply)
    halves, total = [], 0
    for place, index in places(shape, shards):
        here = jax.tree.map(functools.partial(shard, index=index), arrays)
        here = leaf_of(SPEC, *here, SCALARS, DITHER._replace(place=place))
        half = moments(here)
        halves.append((index, here.replace(slots=half.slots), half.tiles))
        total += half.sums.sum(0)  # over its parts
    out = jax.tree.map(np.zeros_like, (arrays[1], arrays[2], arrays[3]))
    for index, here, tiles in halves:
        factor = ratio(total, SCALARS.astype(jnp.float32))
        made = jax.tree.leaves((apply(here, factor, tiles).out, *arrays_of(here.slots)))
        for whole, x in zip(jax.tree.leaves(out), made, strict=True):
            shard(whole, index)[...] = x
    return out


class Kernels:
    moments = staticmethod(functools.partial(mosaic.moments, interpret=INTERPRET))
    apply = staticmethod(functools.partial(mosaic.apply, interpret=INTERPRET))


@pytest.mark.parametrize(
    "shape, shards", [((64, 512), (2, 1)), ((32, 1024), (2, 2)), ((64, 384), (4, 1))]
)
@pytest.mark.parametrize("implementation", ["xla", "kernels"])
def test_shards_step_as_the_leaf_does(implementation, shape, shards):
    step = xla if implementation == "xla" else Kernels
    g, p, slots, scales = leaf(shape)
    whole = on_arrays(xla.step) if implementation == "xla" else interpreted_step
    expected = whole(SPEC, g, p, slots, scales, SCALARS, DITHER)
    out, codes, absmaxes = apart(step, shape, shards)
    for x, y in zip(expected.slots, codes, strict=True):
        np.testing.assert_array_equal(x, y)
    # XLA's CPU compiler contracts multiply-adds by the shape of a loop.
    for x, y in zip(expected.absmaxes, absmaxes, strict=True):
        np.testing.assert_allclose(x, y, rtol=2.0**-22)
    # The sums of the shards are added up in another order.
    np.testing.assert_allclose(out, expected.out, rtol=1e-6, atol=1e-7)
